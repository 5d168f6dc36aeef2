"""MNIST's idx files."""

import gzip
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from rdm.api import CorruptFileError, Source, sources
from rdm.data.sources._files import fits
from rdm.data.sources._labels import classes, labelled

CHUNK = 2**24


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
        return _read(self.path, 3)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Classes n, where the file beside has them."""
        beside = self.path.with_name(self.path.name.replace("images", "labels").replace("idx3", "idx1"))
        if beside == self.path or not beside.is_file():
            return None
        return classes(_read(beside, 1), len(self), str(beside))

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:  # noqa: D102
        return f"{i:08d}"

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return self.images[i]

    def label(self, i: int) -> int:  # noqa: D102
        return labelled(self.labels, i)


def _read(path: Path, dimensions: int) -> np.ndarray:
    """The array of an idx file, of which no more is read than its header says."""
    begin = bytes((0, 0, 8, dimensions))
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            shape = [int(size) for size in np.frombuffer(head[4:], ">i4")] if len(head) % 4 == 0 else []
            if head[:4] != begin or len(shape) != dimensions or min(shape) < 0:
                raise CorruptFileError(f"{path} is no idx file of bytes in {dimensions} dimensions; got {head[:4]!r}")
            fits(math.prod(shape), str(path))
            data = _exactly(file, math.prod(shape))
    except (OSError, EOFError, MemoryError, OverflowError, zlib.error) as error:
        raise CorruptFileError(f"{path} cannot be read ({error}); it is truncated or altered") from error
    if data is None:
        raise CorruptFileError(f"{path}: its size is not what its header says; it is truncated or no ubyte idx file")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _exactly(file: BufferedIOBase, size: int) -> bytes | None:
    """The rest of a file, where it is of this size."""
    parts = []
    while size > 0 and (part := file.read(min(size, CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts) if size == 0 and not file.read(1) else None
