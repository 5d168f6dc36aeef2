"""Presets, which are families with other defaults, and the loading of public weights by rules."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from rdm.api import generators, load_weights


class Rule(NamedTuple):
    """What happens to tensors of a public file whose name matches: renamed, or skipped where there is no new name."""

    pattern: str
    new: str | None
    why: str
    change: Callable[[Tensor], Tensor] | None = None  # of the tensor


def follow(rules: Iterable[Rule], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a public file under the names of the generator."""
    kept = {}
    for name, tensor in state.items():
        for rule in rules:
            if not re.search(rule.pattern, name):
                continue
            if rule.new is None:
                break
            name = re.sub(rule.pattern, rule.new, name)
            tensor = tensor if rule.change is None else rule.change(tensor)
        else:
            kept[name] = tensor
    return kept


def load(model: Any, weights: str | None, entry: str | None, fresh: tuple[str, ...] = ()) -> None:
    """Load weights strictly, under public names (`model.from_public`) or the generator's; None leaves it as it is."""
    if weights is not None:
        load_weights(model, weights, entry=entry, rename=model.from_public, fresh=fresh)


def presets(of: str, family: type[nn.Module], source: str, rows: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Register a row a preset: its published number of parameters, and what differs from the family's defaults.

    `of` is the family's name; `source` are repositories of public weights, empty where there are none.
    """
    for name, (parameters, row) in rows.items():
        notes = {"parameters": parameters} | ({"weights of": source} if source else {})
        generators.register(name, examples=(), notes=notes)(_preset(of, family, name, row))


def _preset(of: str, family: type[nn.Module], name: str, row: Mapping[str, Any]) -> Callable[..., nn.Module]:
    def build(**given: Any) -> nn.Module:
        return family(**{**row, **given})

    own = inspect.signature(family.__init__).parameters.values()
    defaults = [p.replace(default=row.get(p.name, p.default), kind=p.KEYWORD_ONLY) for p in own if p.name != "self"]
    build.__signature__ = inspect.Signature(defaults)  # type: ignore[attr-defined]
    build.__annotations__ = dict(family.__init__.__annotations__)
    build.__name__ = build.__qualname__ = name
    shown = ", ".join(f"{key} {value}" for key, value in row.items()) or "its defaults"
    _, _, rest = (inspect.getdoc(family) or "").partition("\n")
    build.__doc__ = f"A preset of {of}: {shown}.\n{rest}"
    return build
