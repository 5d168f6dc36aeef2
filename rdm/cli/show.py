"""`rdm show NAME`: a gin file of the package; or a member as its docstring says, its parameters, how to name it."""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from rdm.cli.index import experiments
from rdm.errors import UnknownNameError
from rdm.numbers import hints_of, words
from rdm.registry import EXPERIMENTS, Entry, nearest, registries
from rdm.terminal import say

BUILT = {  # what `rdm` has a function for
    "balances": "balance",
    "batteries": "battery",
    "datasets": "dataset",
    "generators": "generator",
    "memories": "memory",
    "metrics": "metric",
    "objectives": "objective",
    "representations": "representation",
}


def show(name: str) -> None:
    """Print every member of a name, or the one of a kind as "objectives.mmd"; or a gin file of the package's own.

    Raises:
        UnknownNameError: none is called so.
    """
    own = name.removesuffix(".gin").removeprefix("experiments/")
    if own in (row.name for row in experiments()):
        for line in _file(own):
            say(line, file=sys.stdout)
        return
    for number, (kind, entry) in enumerate(_called(name)):
        for line in ([""] if number else []) + list(_page(kind, entry)):
            say(line, file=sys.stdout)


def _file(name: str) -> list[str]:
    text = (EXPERIMENTS / f"{name}.gin").read_text(encoding="utf-8")
    command = "sweep" if "rdm.sweep.grid" in text else "train"
    named = f"in a shell: rdm {command} {name}", f"in gin:     include '{name}'"
    return [f"{name} (experiment)", "", *text.rstrip().splitlines(), "", *named]


def _called(name: str) -> list[tuple[str, Entry]]:
    kind, _, rest = name.replace("/", ".").rpartition(".")
    plural = {registry.kind: each for each, registry in registries.items()}
    kinds = list(registries) if not kind else [plural.get(kind, kind)]
    found = [(k, registries[k][rest]) for k in kinds if k in registries and rest in registries[k]]
    if not found:
        every = {member for registry in registries.values() for member in registry}
        every |= {row.name for row in experiments()}
        raise UnknownNameError(
            f"no member is called {name!r}{_nearest(rest if kinds[0] in registries else name, every)}"
        )
    return found


def _nearest(name: str, every: set[str]) -> str:
    near = nearest(name, every)
    return near if "did you mean" in near else "; `rdm list` names all"


def _page(kind: str, entry: Entry) -> Iterator[str]:
    yield f"{entry.name} ({registries[kind].kind})"
    yield ""
    yield from (inspect.getdoc(entry.build) or "").splitlines()
    said = facts(entry) + ([f"weights: {'present' if entry.present() else 'absent'}"] if entry.present else [])
    if said:
        yield ""
        yield from said
    yield ""
    rows = parameters(entry)
    yield "parameters:" if rows else "parameters: none"
    width = max((len(name) for name, *_ in rows), default=0)
    for name, default, takes in rows:
        yield f"  {name:<{width}}  {default}" + (f"; {takes}" if takes else "")
    yield ""
    yield from examples(kind, entry)


def facts(entry: Entry) -> list[str]:
    """What the registration says beside the docstring, as "licence: MIT"."""
    return [f"{key}: {value}" for key, value in entry.notes.items()] + ([f"needs: {entry.needs}"] * bool(entry.needs))


def parameters(entry: Entry) -> list[tuple[str, str, str]]:
    """Name, default and what it takes, of each parameter; the last is empty where the annotation does not say."""
    hints = hints_of(entry.build.__init__ if isinstance(entry.build, type) else entry.build)
    return [
        (
            p.name,
            "required" if p.default is p.empty else f"default {_shown(p.default)}",
            words(hints[p.name]) if p.name in hints else "",
        )
        for p in inspect.signature(entry.build).parameters.values()
    ]


def _shown(value: Any) -> str:
    return getattr(value, "__qualname__", None) or " ".join(repr(value).split())


def examples(kind: str, entry: Entry) -> Iterator[str]:
    """How Python and gin name it, with the hyperparameters that its first example has."""
    given = next((example for example in entry.examples if example), {})
    if kind in BUILT:
        arguments = "".join(f", {key}={value!r}" for key, value in given.items())
        yield f'in Python:  rdm.{BUILT[kind]}("{entry.name}"{arguments})'
    yield f"in gin:     @{kind}.{entry.name}()"
    for key, value in given.items():
        yield f"            {kind}.{entry.name}.{key} = {value!r}"
