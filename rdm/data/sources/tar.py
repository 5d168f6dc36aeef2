"""Tar files of pictures in WebDataset's style."""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from rdm.api import CorruptFileError, InputError, Source, decode, first_line, is_grey, printable, sources
from rdm.data.sources._files import HIDDEN, PICTURES, in_words
from rdm.data.sources._labels import whole

NAMES = ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
LARGEST_LABEL = 2**24  # bytes of a .cls or .json file
BLOCK = tarfile.BLOCKSIZE


class _Sample(NamedTuple):
    name: str
    start: int
    size: int
    label: int


@dataclass
class _Contents:
    """What a scan finds: where pictures lie, classes by key, names of other members by reason."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


@sources.register("tar")
@dataclass(frozen=True)
class Tar(Source):
    """A .tar of pictures, each with an optional class in KEY.cls or in KEY.json's "label" (WebDataset)."""

    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_file() and path.name.lower().endswith(NAMES)

    @cached_property
    def contents(self) -> _Contents:
        """Where everything lies; the file is scanned once and then read by offsets."""
        found = _Contents()
        try:
            for member, file in _members(self.path):
                self._take(member, file, found)
        except InputError:
            raise
        except Exception as error:  # tarfile has its own and passes others on
            why = printable(first_line(error))
            raise CorruptFileError(f"{self.path} cannot be read ({why}); it is truncated or altered") from error
        self._drop_companions(found)
        return found

    @cached_property
    def index(self) -> list[_Sample]:
        """Every picture with its class, by name."""
        places, labels = self.contents.places, self.contents.labels
        return [_Sample(name, *places[name], labels.get(_split(name)[0], -1)) for name in sorted(places)]

    @property
    def left_out(self) -> str:  # noqa: D102
        return in_words(self.contents.left_out)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:  # noqa: D102
        return self.index[i].name

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return decode(self._bytes(i))

    def grey(self, i: int) -> bool:  # noqa: D102
        return is_grey(self._bytes(i))

    def label(self, i: int) -> int:  # noqa: D102
        return self.index[i].label

    def _bytes(self, i: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.index[i].start)
            return file.read(self.index[i].size)

    def _take(self, member: tarfile.TarInfo, file: tarfile.TarFile, found: _Contents) -> None:
        """Note a picture or a class, or why a member is neither."""
        if member.isdir():
            return
        key, suffix = _split(member.name)
        last = os.path.splitext(suffix)[1] or suffix
        why = _unread(member, last if last in PICTURES else suffix)
        if why:
            found.left_out.setdefault(why, []).append(member.name)
        elif last in PICTURES:
            if member.name in found.places:
                raise InputError(f"{self.path}: two members are called {printable(member.name)!r}; names must differ")
            found.places[member.name] = member.offset_data, member.size
        else:
            who = f"{self.path}: {printable(member.name)}"
            label = _label(file, member, who)
            if label is not None and found.labels.setdefault(key, label) != label:
                raise InputError(f"{who}: class {label}, and {found.labels[key]} elsewhere under the same key")

    def _drop_companions(self, found: _Contents) -> None:
        """Of one key's pictures only KEY.png or the like is the item; KEY.mask.png and others are not."""
        keys: dict[str, list[str]] = {}
        for name in found.places:
            keys.setdefault(_split(name)[0], []).append(name)
        for key, names in keys.items():
            plain = [name for name in names if _split(name)[1] in PICTURES]
            if len(names) > 1 and not plain:
                first, second = (printable(name) for name in sorted(names)[:2])
                raise InputError(
                    f"{self.path}: {first} and {second} are both of key {printable(key)!r}, which ends at the first "
                    "dot; call one a key KEY.png, or rename them"
                )
            for name in set(names) - set(plain) if plain else ():
                del found.places[name]
                found.left_out.setdefault("beside another picture of their key", []).append(name)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Every member, when the file is a tar that is not compressed, and whole."""
    with open(path, "rb") as file:
        begin = file.read(8)
        packed = next((name for magic, name in PACKED.items() if begin.startswith(magic)), None)
        if packed:
            raise InputError(f"{path} is compressed by {packed}; members are read where they lie; decompress it first")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                yield member, archive
            _check_end(file, archive.offset, path)


def _check_end(file: IO[bytes], at: int, path: Path) -> None:
    """`tarfile` ends without a word at a damaged header, and at the first of archives end to end."""
    file.seek(at)
    if file.read(BLOCK) != bytes(BLOCK):
        raise CorruptFileError(f"{path}: no header and no end at byte {at:,}; it is truncated or altered")
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            raise CorruptFileError(
                f"{path}: there is more after its end at byte {at:,}; it is altered, or several archives end to end"
            )


def _unread(member: tarfile.TarInfo, suffix: str) -> str:
    """Why a member is neither picture nor class; empty where it is."""
    if any(part.startswith(".") and part not in (".", "..") for part in member.name.split("/")):
        return HIDDEN
    if suffix not in PICTURES | {".cls", ".json"}:
        return f"of suffix {suffix!r}" if suffix else "without a suffix"
    if not member.isfile():
        return "of links, devices and other kinds"
    return "of sparse files" if member.issparse() else ""


def _split(name: str) -> tuple[str, str]:
    """Key and lower-case suffix, parted at the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return folder + slash + key, (dot + suffix).lower()


def _label(file: tarfile.TarFile, member: tarfile.TarInfo, who: str) -> int | None:
    """The class in a .cls or .json member; None where the JSON has none."""
    if member.size > LARGEST_LABEL:
        raise InputError(f"{who} is of {member.size:,} bytes; expected a class, at most {LARGEST_LABEL:,}")
    content = file.extractfile(member)
    assert content is not None
    data, json_text = content.read(), member.name.lower().endswith(".json")
    try:
        found = json.loads(data) if json_text else {"label": int(data)}
    except (ValueError, RecursionError) as error:
        shown = data[:40].decode("utf-8", "backslashreplace")
        raise InputError(
            f"{who} is no {'JSON' if json_text else 'class'} ({type(error).__name__}); {shown!r}"
        ) from error
    label = found.get("label") if isinstance(found, dict) else None
    return None if label is None else whole(label, who)
