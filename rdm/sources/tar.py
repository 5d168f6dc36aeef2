"""Tar files of pictures in WebDataset's style."""

import json
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rdm.registry import sources
from rdm.source import Source, decode
from rdm.sources.image_folder import PICTURES


class _Sample(NamedTuple):
    name: str
    start: int
    size: int
    label: int


@sources.register("tar")
@dataclass(frozen=True)
class Tar(Source):
    """A tar file of pictures, each with an optional class in KEY.cls or in KEY.json's "label" (WebDataset)."""

    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_file() and path.suffix == ".tar" and tarfile.is_tarfile(path)

    @cached_property
    def index(self) -> list[_Sample]:
        """Where each picture lies; the file is scanned once and then read by offsets."""
        places: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        with tarfile.open(self.path) as file:
            for member in file:
                key, _, suffix = member.name.partition(".") if "/" not in member.name else _split(member.name)
                if not member.isfile():
                    continue
                if f".{suffix.lower().split('.')[-1]}" in PICTURES:
                    places[member.name] = member.offset_data, member.size
                elif suffix in ("cls", "json"):
                    labels[key] = _label((file.extractfile(member) or _NOTHING).read(), suffix)
        keys = {name: (_split(name) if "/" in name else name.partition("."))[0] for name in places}
        return [_Sample(name, *places[name], labels.get(keys[name], -1)) for name in sorted(places)]

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:  # noqa: D102
        return self.index[i].name

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        with open(self.path, "rb") as file:
            file.seek(self.index[i].start)
            return decode(file.read(self.index[i].size))

    def label(self, i: int) -> int:  # noqa: D102
        return self.index[i].label


def _split(name: str) -> tuple[str, str, str]:
    """Key and suffix, parted at the first dot of the file's own name."""
    folder, _, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}/{key}", dot, suffix


def _label(data: bytes, suffix: str) -> int:
    try:
        return int(data) if suffix == "cls" else int(json.loads(data).get("label", -1))
    except (ValueError, AttributeError, TypeError):
        return -1


class _Nothing:
    def read(self) -> bytes:
        return b""


_NOTHING = _Nothing()
