"""`rdm list` and where the command line takes names: of members, and of the package's own gin files."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

from rdm.cli.index import Index, experiments, index, with_weights
from rdm.errors import InputError
from rdm.registry import EXPERIMENTS, nearest, registries
from rdm.terminal import say

GIN = "experiments"  # gin files beside the members
UNLISTED = "memories", "networks"  # unless they are asked for
NAME = 24  # columns


def list_members(kind: str | None, *, as_json: bool = False, weights: bool = False) -> None:
    """Print names, one line each, with what they need installed; or JSON."""
    found = _chosen(kind)
    if weights:
        found = {each: rows for each, rows in with_weights({k: r for k, r in found.items() if k != GIN}).items()}
    if as_json:
        plain = {each: [row._asdict() for row in rows] for each, rows in found.items()}
        for line in json.dumps(plain, indent=2).splitlines():
            say(line, file=sys.stdout)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for each, rows in found.items():
        say(f"{each}:", file=sys.stdout)
        for row in rows:
            line = f"  {row.name:<{NAME - 1}} {row.text}"
            for part in _lines(line, width):
                say(part, file=sys.stdout)


def _lines(line: str, width: int) -> list[str]:
    """A line as a terminal of this width shows it without breaking words; one line elsewhere."""
    if width < 2 * NAME:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=" " * (NAME + 2), break_on_hyphens=False) or [line]


def _chosen(kind: str | None) -> Index:
    if kind is None:
        return {each: rows for each, rows in index().items() if each not in UNLISTED}
    singular = {registry.kind: each for each, registry in registries.items()} | {GIN[:-1]: GIN}
    each = singular.get(kind, kind)
    if each == GIN:
        return {GIN: experiments()}
    if each not in registries:
        raise InputError(f"rdm list takes one of {', '.join((*registries, GIN))}; got {kind!r}")
    return {each: index()[each]}


def configuration(path: Path) -> Path:
    """A gin file that is there, or one of the package's by its name, as "digits/frechet_ema".

    Raises:
        InputError: neither.
    """
    if path.is_file() or path.is_absolute():
        return path
    name = "/".join(path.parts[path.parts[0] == GIN :] if path.parts else ()).removesuffix(".gin")
    names = [row.name for row in experiments()]
    if name in names:
        return EXPERIMENTS / f"{name}.gin"
    near = nearest(name, names)
    hint = near if "did you mean" in near else f"; `rdm list {GIN}` names those of the package"
    raise InputError(f"expected a gin file at {path}; there is none{hint}")
