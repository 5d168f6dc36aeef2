"""An objective bound to one reference, and what it remembers from step to step."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.matching.memory import Memory, NoMemory, Past
from rdm.matching.objective import Objective
from rdm.matching.statistic import Cat, Statistic, Summary


class Read(NamedTuple):
    """The distance of a batch and the past, differentiable in the batch."""

    value: Tensor
    share: float  # of the gradient, that the memory leaves to the batch
    batch: Summary  # detached, as it is to be written


@dataclass
class Remembered:
    """What changes from step to step is `past` alone."""

    objective: Objective
    row: Tensor  # the reference's mean, "1 d"
    statistic: Statistic
    target: Any
    memory: Memory = NoMemory()
    past: Past | None = None

    def read(self, batch: Summary, rows: int, generator: torch.Generator | None) -> Read:
        """The distance of the population that the memory makes of the batch of all ranks, of so many rows."""
        population, share = self.memory.read(self.past, batch, rows, self.statistic)
        value = self.objective.distance(population, self.target, generator=generator)
        return Read(value, share, batch.detach())

    def write(self, batch: Summary, rows: Cat | None) -> float:
        """Take a batch of all ranks into the memory; the share of its mass that it drops."""
        taken = rows if self.memory.keeps_rows else batch
        assert taken is not None
        self.past, dropped = self.memory.write(self.past, taken, self.statistic, batch)
        return dropped

    def packed(self) -> list[Tensor] | None:
        """The past as tensors."""
        return self.memory.packed(self.past)


def moved(tree: Any, device: torch.device) -> Any:
    """The same tree of dataclasses, named tuples and containers with its tensors on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: moved(getattr(tree, f.name), device) for f in fields(tree) if f.init})
    if isinstance(tree, tuple):
        parts = [moved(each, device) for each in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, list):
        return [moved(each, device) for each in tree]
    return {key: moved(each, device) for key, each in tree.items()} if isinstance(tree, dict) else tree
