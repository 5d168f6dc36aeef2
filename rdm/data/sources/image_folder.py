"""Folders of picture files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.api import Source, decode, is_grey, sources
from rdm.data.sources._files import PICTURES, SOUND, Listing, listing, mostly, top_folders


@sources.register("image_folder")
@dataclass(frozen=True)
class ImageFolder(Source):
    """A folder of picture files, subfolders and links included; the first folder below is the class."""

    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return mostly(path, PICTURES, SOUND)

    @cached_property
    def found(self) -> Listing:  # noqa: D102
        return listing(self.path, PICTURES)

    @property
    def left_out(self) -> str:  # noqa: D102
        return self.found.said

    @cached_property
    def labels(self) -> list[int]:  # noqa: D102
        return top_folders(self.found.names)

    def __len__(self) -> int:
        return len(self.found.names)

    def name(self, i: int) -> str:  # noqa: D102
        return self.found.names[i]

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return decode(self.path / self.name(i))

    def grey(self, i: int) -> bool:  # noqa: D102
        return is_grey(self.path / self.name(i))

    def label(self, i: int) -> int:  # noqa: D102
        return self.labels[i]
