"""An index of the registries, so that a list costs no import of the members.

It is kept in the cache folder, and made anew when a source changes, a package of members is installed or goes, or
another Python asks.
"""

import contextlib
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from rdm.app.process import cache_folder
from rdm.registry import EXPERIMENTS, HOME, OWN, installed, registries

Index = dict[str, list["Row"]]


class Row(NamedTuple):
    """A member in a list."""

    name: str
    summary: str
    needs: str = ""
    notes: dict[str, str] = {}

    @property
    def text(self) -> str:
        """What it is, with its notes and what it needs."""
        facts = [f"{key} {value}" for key, value in self.notes.items()]
        facts += [f"needs {self.needs}"] if self.needs else []
        return self.summary + (f" [{'; '.join(facts)}]" if facts else "")


def index() -> Index:
    """Every member by kind, from the cache where it is of the sources as they are."""
    stamp = _stamp()
    place = cache_folder() / f"members-{hashlib.sha256(f'{HOME} {sys.prefix}'.encode()).hexdigest()[:12]}.json"
    held = _held(place, stamp)
    if held is not None:
        return held
    found = members()
    from rdm.files.store import write_json

    with contextlib.suppress(OSError):  # no cache, then: the next list takes as long
        write_json(place, {"stamp": stamp, "members": found})
    return found


def members() -> Index:
    """Every member by kind, from the registries."""
    return {
        kind: [Row(e.name, e.summary, e.needs, dict(e.notes)) for e in registry.values()]
        for kind, registry in registries.items()
    }


def with_weights(found: Index) -> Index:
    """The index with whether each member's weights are on this machine, which only its own code knows."""

    def noted(kind: str, row: Row) -> Row:
        present = registries[kind][row.name].present
        said = {} if present is None else {"weights": "present" if present() else "absent"}
        return row._replace(notes={**row.notes, **said})

    return {kind: [noted(kind, row) for row in rows] for kind, rows in found.items()}


def experiments() -> list[Row]:
    """The package's own gin files by name, with their first comment."""
    found = sorted(EXPERIMENTS.rglob("*.gin"))
    return [Row(str(p.relative_to(EXPERIMENTS).with_suffix("")), _comment(p)) for p in found]


def _comment(path: Path) -> str:
    """The first sentence of the comment that it begins with."""
    lines = itertools.takewhile(lambda line: line.strip("# "), path.read_text(encoding="utf-8").splitlines())
    said = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return re.split(r"(?<=\.)\s(?=[A-Z])", said)[0]


def _held(place: Path, stamp: str) -> Index | None:
    try:
        held: Any = json.loads(place.read_text(encoding="utf-8"))
        if held["stamp"] != stamp:
            return None
        return {kind: [Row(*row) for row in rows] for kind, rows in held["members"].items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none there, or not as it was written
        return None


def _stamp() -> str:
    """A hash of what the index depends on: Python, installed packages of members, every source's time and size."""
    entries = installed()
    said = [sys.version, *(f"{e.name} {e.value} {e.dist.version if e.dist else ''}" for e in entries)]
    folders = [HOME / name for name in OWN] + [place for e in entries for place in _places(e.module)]
    said += [f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}" for path in _sources(folders)]
    return hashlib.sha256("\n".join(said).encode("utf-8", "surrogateescape")).hexdigest()


def _places(module: str) -> Sequence[Path]:
    """Where the package of a module lies, which is not imported."""
    spec = PathFinder.find_spec(module.partition(".")[0])
    if spec is None:
        return []
    return [Path(p) for p in spec.submodule_search_locations or [spec.origin or ""]]


def _sources(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.is_file() else []
