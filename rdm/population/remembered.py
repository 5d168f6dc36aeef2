"""An objective bound to one reference, and what it remembers from step to step."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError
from rdm.matching.memory import Memory, NoMemory, Past
from rdm.matching.objective import Follower, Objective, Portion, Seen
from rdm.matching.queued import Queued
from rdm.matching.statistic import Cat, Statistic, Summary
from rdm.numbers import Positive, check


class Read(NamedTuple):
    """The distance of a batch and the past, differentiable in the batch."""

    value: Tensor
    share: float  # of the gradient, that the memory leaves to the batch
    batch: Summary  # detached, as it is to be written
    report: dict[str, float]  # of the solver, if there is one
    left: dict[str, Tensor] | None  # what the solver wants back, once the batch is written


class Unmeasured(Statistic):
    """Rows as they are: what a solver takes of a batch."""

    kind: ClassVar[type[Summary]] = Cat

    def measure(self, features: Tensor, weights: Tensor) -> Cat:
        """The rows."""
        return Cat(features, weights)


@dataclass
class Remembered:
    """What changes from step to step is `past`, and what a solver made of the step before."""

    objective: Objective
    row: Tensor  # the reference's mean, "1 d"
    statistic: Statistic
    target: Any
    memory: Memory = NoMemory()
    solver: Follower | None = None
    past: Past | None = None
    solved: dict[str, Tensor] | None = None

    @property
    def live(self) -> Statistic:
        """What is measured of a batch, of which the distance is taken."""
        return self.statistic if self.solver is None else Unmeasured()

    def read(
        self, batch: Summary, rows: int, generator: torch.Generator | None, portion: Portion | None = None
    ) -> Read:
        """The distance of the population that the memory makes of the batch of all ranks, of so many rows.

        Or one summand of it.
        """
        if self.solver is not None:
            return self._solved(self.solver, batch, rows)
        population, share = self.memory.read(self.past, batch, rows, self.statistic)
        if portion is None:
            value = self.objective.distance(population, self.target, generator=generator)
        else:
            value = self.objective.part(population, self.target, portion, generator=generator)
        return Read(value, share, batch.detach(), {}, None)

    def _solved(self, solver: Follower, batch: Summary, rows: int) -> Read:
        """The same within the solver's tolerance."""
        live = batch.detach()
        assert isinstance(batch, Cat) and isinstance(live, Cat)
        with torch.no_grad():
            measured = self.statistic.measure(live.value, live.weight)
            population, share = self.memory.read(self.past, measured, rows, self.statistic)
            change = self.memory.change(self.past, live)
        found = solver.solve(Seen(batch, population, share, change), self.statistic, self.target, self.solved)
        return Read(found.value, share, measured, found.report, found.state)

    def write(self, batch: Summary, rows: Cat | None, left: dict[str, Tensor] | None = None) -> float:
        """Take a batch of all ranks into the memory, and what reading it left; the share of its mass that it drops."""
        if not isinstance(batch, self.statistic.kind):  # written before any step
            batch = self.statistic.measure(batch.value, batch.weight)
        taken = rows if self.memory.keeps_rows else batch
        assert taken is not None
        self.past, dropped = self.memory.write(self.past, taken, self.statistic, batch)
        self.solved = left
        return dropped

    def packed(self) -> list[Tensor] | None:
        """The past as tensors."""
        return self.memory.packed(self.past)

    def restore(self, past: list[Tensor] | None, solved: dict[str, Tensor] | None) -> None:
        """Take back what `packed` and `solved` gave.

        Raises:
            CorruptFileError: damaged or forged.
        """
        taken = self.memory.unpacked(past, self.statistic)
        if solved is not None:
            if self.solver is None or taken is None:
                raise CorruptFileError(
                    "what a solver kept goes with a tolerance and a past; give the state of one like it"
                )
            summary = taken.summed(len(taken), self.statistic) if isinstance(taken, Queued) else taken
            self.solver.check(solved, summary, self.statistic, self.target)
        self.past, self.solved = taken, solved


def followed(objective: Objective, memory: Memory, tolerance: float | None) -> Follower | None:
    """The objective's solver for a tolerance.

    Raises:
        InputError: not above 0; it has none; there is no memory that it could follow.
    """
    check("tolerance", tolerance, Positive | None)
    if tolerance is None:
        return None
    if isinstance(memory, NoMemory):
        raise InputError("a tolerance is for populations with a memory; give one (ema, queue), or leave it out")
    return objective.solver(tolerance)


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
