"""What generators are asked for: conditions as tensors, one or several of equal length, and the objects that draw them.

A condition is a tensor with a row an item, or a tuple or mapping of such (a context, its padding mask, the caption's
number). Conditions are drawn in two halves: which ones, for all ranks from one stream; then what a generator is given
for them, which each rank reads for its own items alone.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.files.mapped import open_table

Condition = Tensor | tuple[Any, ...] | Mapping[str, Any]
Law = Literal["uniform", "data"] | Sequence[float] | str


def mapped(condition: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with every tensor changed; None stays None."""
    if isinstance(condition, Mapping):
        return {name: mapped(part, change) for name, part in condition.items()}
    if isinstance(condition, tuple):
        parts = [mapped(part, change) for part in condition]
        return type(condition)(*parts) if hasattr(condition, "_fields") else tuple(parts)
    return condition if condition is None else change(condition)


def leaves(condition: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every part that is no tuple or mapping, with where it lies: "", "['mask']", "[0]"."""
    if isinstance(condition, Mapping | tuple):
        pairs = condition.items() if isinstance(condition, Mapping) else enumerate(condition)
        for key, part in pairs:
            yield from leaves(part, f"{name}[{key!r}]")
    elif condition is not None:
        yield name, condition


def rows_of(condition: Any, which: Tensor | slice) -> Any:
    """Some rows of every tensor."""
    return mapped(condition, lambda part: part[which.to(part.device) if isinstance(which, Tensor) else which])


def moved(condition: Any, device: torch.device | str) -> Any:
    """Every tensor on a device."""
    return mapped(condition, lambda part: part.to(device))


def split(condition: Any, sizes: Sequence[int]) -> list[Any]:
    """Pieces of so many rows."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [rows_of(condition, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def check_condition(condition: object, n: int, owner: str) -> None:
    """Refuse a condition that is not one row for each of n items; None is none.

    Raises:
        InputError: another type or length.
    """
    for name, part in leaves(condition):
        who = f"the condition{name} for {owner}"
        if not isinstance(part, Tensor):
            raise InputError(f"{who} must be a tensor; got {type(part).__name__}")
        if part.ndim == 0 or len(part) != n:
            raise InputError(f"{who} must have {n} rows, one an item; got {len(part) if part.ndim else 'a number'}")


def described(condition: Condition | None) -> str:
    """Shapes and types in one line."""
    parts = [f"{name} {part.dtype} {tuple(part.shape)}".strip() for name, part in leaves(condition)]
    return ", ".join(parts).replace("torch.", "") or "none"


class Conditions(ABC):
    """What a generator is asked for, drawn at random: members of the registry "conditions".

    `count` is the number of different ones where `draw` gives their numbers, from 0 to count - 1; None where they
    cannot be counted.
    """

    count: int | None = None

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Condition:
        """Which n conditions, on the generator's device; a few numbers each, since every rank draws those of all."""

    def read(self, drawn: Any) -> Condition | None:
        """What a generator is given for them: the same by default; the rows of a table, for numbers of rows."""
        return drawn

    def fitted(self, real: Condition | None) -> "Conditions":
        """These conditions, once those of the real items are known."""
        return self


class Numbers(Conditions):
    """Whole numbers below `count`: class labels, or rows of whatever a subclass reads for them.

    Args:
        count: of different numbers; None where the law says it.
        law: "uniform"; "data", as often as in the real items; probabilities (not necessarily normalised), one a number;
            or the path of a .npy or safetensors file that holds them.

    Raises:
        InputError: no number to draw; probabilities of another length, negative or all zero.
    """

    def __init__(self, count: int | None, law: Law = "uniform"):
        self.count, self.law = count, law
        self._cumulative: Tensor | None = None
        if isinstance(law, str) and law not in ("uniform", "data"):
            law = open_table(Path(law)).whole().tolist()
        if not isinstance(law, str):
            self._follow(torch.tensor(law, dtype=torch.float64), "the law")
        elif law == "uniform" and count is None:
            raise InputError("conditions need the number of different ones, or a law that says it; give classes")

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Numbers "n", independent of each other."""
        device = generator.device
        if self._cumulative is not None:
            u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
            return torch.searchsorted(self._cumulative.to(device), u, right=True)
        if self.law != "uniform" or self.count is None:
            raise InputError('conditions by the law "data" are drawn where real items have conditions; there are none')
        return torch.randint(self.count, (n,), generator=generator, device=device)

    def fitted(self, real: Condition | None) -> "Numbers":
        """The law of the real items, where that is wanted."""
        if self.law != "data" or real is None:
            return self
        if not isinstance(real, Tensor) or real.is_floating_point() or real.ndim != 1 or len(real) == 0:
            raise InputError(f'the law "data" needs real items with whole numbers as conditions; got {described(real)}')
        low, high = int(real.min()), int(real.max())
        if low < 0 or (self.count is not None and high >= self.count):
            most = "" if self.count is None else f" to {self.count - 1}"
            raise InputError(f"conditions of the real items must be numbers from 0{most}; got {low} to {high}")
        known = copy.copy(self)
        known._follow(torch.bincount(real.cpu(), minlength=self.count or 0).double(), "the law of the data")
        return known

    def _follow(self, chances: Tensor, what: str) -> None:
        if chances.ndim != 1 or len(chances) != (self.count or len(chances)):
            raise InputError(
                f"{what} must give {self.count or 'a list of'} probabilities, one a condition; got {len(chances)}"
            )
        if not (bool(torch.isfinite(chances).all()) and bool((chances >= 0).all()) and float(chances.sum()) > 0):
            raise InputError(f"{what} must give probabilities, not negative and not all zero; got {chances.tolist()}")
        self.count = len(chances)
        total = chances.cumsum(0)
        self._cumulative = total / total[-1]
