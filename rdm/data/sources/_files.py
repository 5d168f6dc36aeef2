"""Files below a folder: links followed, each real folder once; what is left out, and why."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rdm.api import InputError, printable

PICTURES = frozenset(
    ".apng .avif .avifs .blp .bmp .bw .cur .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr .gif .icb .icns .ico "
    ".j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .msp .pbm .pcd .pcx .pfm .pgm .png .pnm .ppm .psd .pxr .qoi "
    ".ras .rgb .rgba .sgi .spider .tga .tif .tiff .vda .vst .webp .xbm .xpm".split()
)
SOUND = frozenset(".wav .aif .aiff .au .flac .mp3 .oga .ogg .opus".split())
HIDDEN, LOST, AGAIN, ODD, CLOSED = (
    "hidden",
    "of broken links",
    "of links to folders that are read already",
    "of no regular files",
    "of folders that cannot be listed",
)


class Listing(NamedTuple):
    """Relative names of the files to read, sorted; those of the others by reason."""

    names: list[str]
    left_out: Mapping[str, list[str]]

    @property
    def said(self) -> str:
        """What is left out, in one line; empty where nothing is."""
        return in_words(self.left_out)


def in_words(left_out: Mapping[str, list[str]]) -> str:
    """How many names of each reason, and the first of them."""
    parts = [f"{len(names)} {why} ({min(names)}{', ...' if len(names) > 1 else ''})" for why, names in left_out.items()]
    return printable("; ".join(sorted(parts)))


def listing(path: Path, suffixes: frozenset[str]) -> Listing:
    """Files with such suffixes."""
    names, left_out = walk(path)
    found: list[str] = []
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in suffixes:
            found.append(name)
        else:
            left_out.setdefault(f"of suffix {suffix!r}" if suffix else "without a suffix", []).append(name)
    return Listing(sorted(found), left_out)


def walk(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Relative names of all regular files, and of what is none by reason; linked folders come after the others."""
    names: list[str] = []
    left_out: dict[str, list[str]] = {}
    todo, links = [("", os.path.realpath(path))], list[tuple[str, str]]()
    seen: set[str] = set()
    while todo or links:
        prefix, place = todo.pop() if todo else links.pop(0)
        if place in seen:
            left_out.setdefault(AGAIN, []).append(prefix.rstrip("/"))
            continue
        seen.add(place)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            left_out.setdefault(CLOSED, []).append(prefix.rstrip("/") or ".")
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                left_out.setdefault(HIDDEN, []).append(name)
            elif entry.is_dir() and entry.is_symlink():
                links.append((f"{name}/", os.path.realpath(entry.path)))
            elif entry.is_dir():
                todo.append((f"{name}/", f"{place}/{entry.name}"))
            elif entry.is_file():
                names.append(name)
            else:
                left_out.setdefault(LOST if entry.is_symlink() else ODD, []).append(name)
    return names, left_out


def mostly(path: Path, suffixes: frozenset[str], others: frozenset[str]) -> bool:
    """Whether a folder holds more files of the first suffixes than of the others."""
    if not path.is_dir():
        return False
    found = [os.path.splitext(name)[1].lower() for name in walk(path)[0]]
    return sum(s in suffixes for s in found) > sum(s in others for s in found)


def top_folders(names: list[str]) -> list[int]:
    """The number of each file's first folder among the sorted ones, -1 for files beside them."""
    tops = sorted({name.split("/")[0] for name in names if "/" in name})
    number = {top: k for k, top in enumerate(tops)}
    return [number[name.split("/")[0]] if "/" in name else -1 for name in names]


def fits(size: int, who: str) -> None:
    """Refuse what is larger than the machine's memory before it is read, as a small compressed file may be.

    Raises:
        InputError: it does not fit.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise InputError(f"{who} is of {size:,} bytes, more than this machine's memory of {memory:,}; make it smaller")
