"""Gin files as text whose lines know where they come from, and which of their bindings nothing reads."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rdm.errors import InputError, RestrictedError
from rdm.registry import EXPERIMENTS

MOST_FILES = 500  # included by one file, each time it is


class Text(NamedTuple):
    """Text to parse, and where each of its lines comes from."""

    text: str
    places: tuple[str, ...]

    def place(self, line: int) -> str:
        """Where a line, counted from 1, comes from."""
        return self.places[min(max(line, 1), len(self.places)) - 1]


class Reference(NamedTuple):
    """What a value refers to; `called` where it is written with ()."""

    scope: str
    name: str
    called: bool


class Binding(NamedTuple):
    """One binding as it is written, by full name."""

    scope: str
    name: str
    parameter: str
    references: tuple[Reference, ...]
    place: str
    command: str | None = None  # the text of the --bind that it is of

    @property
    def full(self) -> str:
        """What is bound, as gin writes it."""
        return f"{self.scope}/{self.name}.{self.parameter}".removeprefix("/")


def given(binding: str) -> Text:
    """A binding of the command line."""
    return Text(binding, (f"--bind {binding!r}",) * (binding.count("\n") + 1))


def read(path: Path, admit: Callable[[Path, Path], None]) -> Text:
    """A file's text with included files in place of their include lines.

    Paths are relative to the including file; what is not there is one of the package's own by name.

    `admit(file, included)` refuses what may not be included.

    Raises:
        InputError: no such file, no UTF-8, a file that includes itself, or more than 500 files in all.
    """
    lines = list(_lines(path, admit, (), []))
    return Text("".join(f"{line}\n" for line, _ in lines), tuple(place for _, place in lines) or (str(path),))


def within(root: Path) -> Callable[[Path, Path], None]:
    """Refuse includes from outside a folder, but for the package's own files."""

    def admit(path: Path, included: Path) -> None:
        if not any(included.resolve().is_relative_to(place) for place in (root, EXPERIMENTS)):
            raise RestrictedError(f"{path}: restricted mode refuses to include {included} from outside {root}")

    return admit


def _lines(
    path: Path, admit: Callable[[Path, Path], None], chain: tuple[Path, ...], files: list[Path]
) -> Iterator[tuple[str, str]]:
    files.append(path)
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        place = f"{path}:{number}"
        included = re.match(r"""\s*include\s+['"](.+)['"]\s*(#.*)?$""", line)
        if included is None:
            yield line, place
            continue
        inner, above = _included(path, included[1]), (*chain, path.resolve())
        admit(path, inner)
        if inner.resolve() in above:
            raise InputError(f"{place}: {inner} includes itself; take one of the includes out")
        if len(files) >= MOST_FILES:
            raise InputError(f"{place}: more than {MOST_FILES} files are included; include each once")
        yield from _lines(inner, admit, above, files)


def _included(path: Path, name: str) -> Path:
    beside, own = path.parent / name, (EXPERIMENTS / name).with_suffix(".gin")
    return own if own.is_file() and not beside.exists() else beside


def _decoded(path: Path) -> str:
    if not path.is_file():
        raise InputError(
            f"expected a gin file at {path}; there is none; `rdm list experiments` names those of the package"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8; got {error.reason} at byte {error.start}") from error


def unread(bindings: Sequence[Binding], roots: Iterable[str]) -> tuple[list[Binding], set[str]]:
    """Bindings of names to which nothing leads from the roots, under their scope; and the names that are reached.

    A reference without a scope is called in that of its caller, and one without () wherever it will be called.
    """
    todo, seen, used = [("", root) for root in roots], set(), set()
    while todo:
        scope, name = reached = todo.pop()
        if reached in seen:
            continue
        seen.add(reached)
        for i, binding in enumerate(bindings):
            if binding.name == name and f"{scope}/".startswith(f"{binding.scope}/" if binding.scope else ""):
                used.add(i)
                for reference in binding.references:
                    todo.append((reference.scope or scope, reference.name))
                    if not reference.called:
                        todo.append((reference.scope, reference.name))
    return [binding for i, binding in enumerate(bindings) if i not in used], {name for _, name in seen}
