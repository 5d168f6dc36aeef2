"""How large what an objective makes of a reference is, without the reference: by small ones of several sizes."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from rdm.matching.objective import Objective
from rdm.matching.real import HELD, Gaussian, Real
from rdm.matching.statistic import Statistic
from rdm.randomness import stream

LARGE = 60  # a whole-number hyperparameter above it may be a size


def valued() -> AbstractContextManager[Any]:
    """A block in which tensors have values again, within one where they have none (`rdm.planning.sizes`)."""
    return _disable_current_modes()


class Size(NamedTuple):
    """One size of a binding: what it is in small, how far it is changed to see what follows it, what it really is."""

    small: int
    step: int
    real: int


class Bound(NamedTuple):
    """Statistic and target in small, and the real shapes of their tensors in the order that `_changed` meets them."""

    small: tuple[Statistic, Any]
    shapes: list[tuple[int, ...]]

    def made(self) -> tuple[Statistic, Any]:
        """Statistic and target of the real sizes, their tensors not filled."""
        shapes = iter(self.shapes)
        return _changed(self.small, lambda tensor: torch.empty(next(shapes), dtype=tensor.dtype))


def bound(objective: Objective, rows: int | None, width: int) -> Bound:
    """Sizes of `objective.bind` of a reference of so many rows of this width; of moments alone for None.

    Every dimension of every tensor is taken to be a linear function of the width, of the rows (of which an objective
    of rows keeps 65,536 at most) and of each large whole-number hyperparameter: found by binding small references.
    """
    sizes = {"width": Size(5, 2, width)}
    if rows is not None:
        sizes["rows"] = Size(4 * LARGE, LARGE, min(rows, HELD))
    sizes |= {name: Size(LARGE, LARGE, count) for name, count in _counts(objective).items()}
    small = {name: size.small for name, size in sizes.items()}
    first = _bind(objective, small)
    shapes = [list(map(float, tensor.shape)) for tensor in tensors(first)]
    for name, size in sizes.items():
        other = tensors(_bind(objective, small | {name: size.small + size.step}))
        for shape, before, after in zip(shapes, tensors(first), other, strict=True):
            for k, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)):
                shape[k] += (b - a) / size.step * (size.real - size.small)
    return Bound(first, [tuple(max(0, round(side)) for side in shape) for shape in shapes])


def _bind(objective: Objective, sizes: Mapping[str, int]) -> tuple[Statistic, Any]:
    """Bind a small reference of random rows."""
    with valued(), warnings.catch_warnings(action="ignore"):  # of the small reference
        rows = torch.randn(sizes.get("rows", 4 * LARGE), sizes["width"], generator=stream(0, "sizes"))
        real = Real(rows) if "rows" in sizes else Real(None, Gaussian.of(rows))
        return _of_counts(objective, sizes).bind(real)


def _counts(objective: Objective, place: str = "") -> dict[str, int]:
    """Large whole-number hyperparameters, those of objectives within included."""
    found: dict[str, int] = {}
    for field in dataclasses.fields(objective):  # type: ignore[arg-type]
        value, name = getattr(objective, field.name), f"{place}.{field.name}"
        if isinstance(value, Objective):
            found |= _counts(value, name)
        elif isinstance(value, int) and value > LARGE:
            found[name] = value
    return found


def _of_counts(objective: Objective, counts: Mapping[str, int], place: str = "") -> Objective:
    """The objective with other large hyperparameters."""
    new: dict[str, Any] = {}
    for field in dataclasses.fields(objective):  # type: ignore[arg-type]
        value, name = getattr(objective, field.name), f"{place}.{field.name}"
        if isinstance(value, Objective):
            new[field.name] = _of_counts(value, counts, name)
        elif name in counts:
            new[field.name] = counts[name]
    return dataclasses.replace(objective, **new)  # type: ignore[type-var]


def tensors(tree: Any) -> list[Tensor]:
    """Tensors of a tree of NamedTuples, dataclasses and containers, each once."""
    found: list[Tensor] = []
    _changed(tree, lambda tensor: found.append(tensor) or tensor)
    return found


def _changed(tree: Any, change: Callable[[Tensor], Tensor], known: dict[int, Tensor] | None = None) -> Any:
    """The same tree with other tensors; one that comes twice stays one."""
    known = {} if known is None else known

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            if id(node) not in known:
                known[id(node)] = change(node)
            return known[id(node)]
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*map(walk, node))
        if isinstance(node, list | tuple):
            return type(node)(map(walk, node))
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if dataclasses.is_dataclass(node) and not isinstance(node, type | Objective):
            held = {f.name: walk(getattr(node, f.name)) for f in dataclasses.fields(node) if f.init}
            return dataclasses.replace(node, **held)
        return node

    return walk(tree)
