"""MNIST's idx files."""

import gzip
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.errors import CorruptFileError
from rdm.registry import sources
from rdm.source import Source, labelled


@sources.register("idx")
@dataclass(frozen=True)
class Idx(Source):
    """An idx3-ubyte file of pictures, gzipped or not; labels from the idx1 file that goes with it."""

    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_file() and "idx3-ubyte" in path.name

    @cached_property
    def images(self) -> np.ndarray:
        """Pictures n h w."""
        return _read(self.path)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Classes n, where the file beside has them."""
        beside = self.path.with_name(self.path.name.replace("images", "labels").replace("idx3", "idx1"))
        return _read(beside) if beside != self.path and beside.is_file() else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:  # noqa: D102
        return f"{i:08d}"

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return self.images[i]

    def label(self, i: int) -> int:  # noqa: D102
        return labelled(self.labels, i)


def _read(path: Path) -> np.ndarray:
    try:
        data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise CorruptFileError(f"{path} cannot be read ({error}); it is truncated or altered") from error
    dimensions = data[3] if len(data) > 4 else 0
    shape = np.frombuffer(data, ">i4", dimensions, 4) if len(data) >= 4 + 4 * dimensions else np.array([0])
    start = 4 + 4 * dimensions
    if len(data) != start + int(np.prod(shape)) or data[2] != 8:
        raise CorruptFileError(f"{path}: its size is not what its header says; it is truncated or no ubyte idx file")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
