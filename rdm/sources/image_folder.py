"""Folders of picture files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.registry import sources
from rdm.source import Source, decode

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}


def files_below(path: Path, suffixes: set[str]) -> list[str]:
    """Relative names of the files with such suffixes, sorted; hidden ones left out."""
    found = (p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))


def top_folders(names: list[str]) -> list[int]:
    """The number of each file's first folder among the sorted ones, -1 for files beside them."""
    tops = sorted({name.split("/")[0] for name in names if "/" in name})
    number = {top: k for k, top in enumerate(tops)}
    return [number[name.split("/")[0]] if "/" in name else -1 for name in names]


@sources.register("image_folder")
@dataclass(frozen=True)
class ImageFolder(Source):
    """A folder of picture files, subfolders included; the first folder below is the class."""

    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_dir() and any(p.suffix.lower() in PICTURES for p in path.rglob("*"))

    @cached_property
    def names(self) -> list[str]:  # noqa: D102
        return files_below(self.path, PICTURES)

    @cached_property
    def labels(self) -> list[int]:  # noqa: D102
        return top_folders(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:  # noqa: D102
        return self.names[i]

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return decode(self.path / self.names[i])

    def label(self, i: int) -> int:  # noqa: D102
        return self.labels[i]
