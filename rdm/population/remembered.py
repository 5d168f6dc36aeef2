r"""An objective bound to one reference, and what it remembers from step to step.

Riding: what of the live batch's motion the past follows, so that forces within a population balance.

What repels a live row from a past one does not move the past one. Within a batch such forces cancel in sum; against a
memory they do not, and as the past lags behind, they push the batch the way it went. With x the live rows, z the past,
m the mean of x and sg the identity without gradient, a riding memory has the distance see

.. math:: x_i - (k - 1) (\mathrm{sg} - 1)(x_i - m), \quad z_j + (m - \mathrm{sg}\, m)

which are x and z in value. So the gradient along a translation of the batch is that of the whole population moved as
one, and along deviations from the mean k times that without riding: 1, or if `balanced` one over the live share.

It is done with summaries alone, whatever the statistic: the batch's motion is made k times as large and freed of its
mean (moved by -k (m - sg m)), joined with the past, and the whole moved by m - sg m.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError
from rdm.matching.memory import Memory, NoMemory, Past
from rdm.matching.objective import Follower, Objective, Portion, Seen, Starter
from rdm.matching.queued import Behind, Queued
from rdm.matching.statistic import Cat, Factor, Statistic, Sum, Summary
from rdm.numbers import Positive, check
from rdm.timing.reads import at_once, later, undone_by
from rdm.timing.regions import region


class Read(NamedTuple):
    """The distance of a batch and the past, differentiable in the batch."""

    value: Tensor
    share: Factor  # of the gradient, that the memory leaves to the batch
    mass: Factor  # of the population, the batch's share
    batch: Summary  # detached, as it is to be written; of a population that is followed, its rows
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
    solver: Follower | Starter | None = None
    past: Past | None = None
    solved: dict[str, Tensor] | None = None
    _shape: torch.Size = field(default=torch.Size(), init=False)  # of a summary of one row, where the memory rides

    def __post_init__(self) -> None:  # noqa: D105
        if self.memory.riding:
            one = self.statistic.measure(self.row, torch.ones(1, dtype=torch.float64, device=self.row.device))
            self._shape = self.statistic.translated(one, torch.zeros_like(self.row[0])).value.shape

    @property
    def remembers(self) -> bool:
        """Whether anything is kept from step to step."""
        return self.solver is not None or not isinstance(self.memory, NoMemory)

    @property
    def live(self) -> Statistic:
        """What is measured of a batch, of which the distance is taken."""
        return Unmeasured() if isinstance(self.solver, Follower) else measured(self.memory, self.statistic)

    def read(
        self, batch: Summary, rows: int, generator: torch.Generator | None, portion: Portion | None = None
    ) -> Read:
        """The distance of the population that the memory makes of the batch of all ranks, of so many rows.

        Or one summand of it.
        """
        if isinstance(self.solver, Follower):
            return self._solved(self.solver, batch, rows)
        with region("memory"):
            if self.memory.riding:
                population, share = ridden(self.memory, self.past, batch, rows, self._shape, self.statistic)
            else:
                population, share = self.memory.read(self.past, batch, rows, self.statistic)
        kept = 1.0 if self.memory.balanced else share
        if self.solver is not None:
            found = self.solver.distance(population, self.target, self.solved)
            return Read(found.value, kept, share, batch.detach(), found.report, found.state)
        if portion is None:
            value = self.objective.distance(population, self.target, generator=generator)
        else:
            value = self.objective.part(population, self.target, portion, generator=generator)
        return Read(value, kept, share, batch.detach(), {}, None)

    def _solved(self, solver: Follower, batch: Summary, rows: int) -> Read:
        """The same within the solver's tolerance."""
        live, known = batch.detach(), list[Summary]()
        assert isinstance(batch, Cat) and isinstance(live, Cat)

        @torch.no_grad()
        @region("memory")
        def population() -> Summary:
            self.past = self.memory.caught_up(self.past, rows, self.statistic)
            with region("statistics"):
                known.append(self.statistic.measure(live.value, live.weight))
            return self.memory.read(self.past, known[0], rows, self.statistic)[0]

        share, change = self.memory.share(self.past, rows), self.memory.change(self.past, live)
        found = solver.solve(Seen(batch, population, share, change), self.statistic, self.target, self.solved)
        return Read(found.value, share, share, known[0] if known else live, found.report, found.state)

    def write(self, batch: Summary, rows: Cat | None, left: dict[str, Tensor] | None = None) -> Factor:
        """Take a batch of all ranks into the memory, and what reading it left; the share of its mass that it drops."""
        undone_by(partial(self._forget, self.past, self.solved))
        batch = own(batch, self._shape, self.statistic)
        if left is not None and isinstance(batch, Cat) and self.statistic.kind is Sum:  # followed: nothing was measured
            self.past, dropped = self.memory.follow(self.past, batch, self.statistic), 0.0
        else:
            if not isinstance(batch, self.statistic.kind):  # written before any step
                batch = self.statistic.measure(batch.value, batch.weight)
            taken = rows if self.memory.keeps_rows else batch
            assert taken is not None
            past = self._whole()
            self.past, dropped = self.memory.write(past, taken, self.statistic, batch)
        self.solved = left
        if isinstance(self.past, Cat) and not at_once(self.past.weight):
            later((self.past.weight > 0).sum(), self._thin)
        return dropped

    def _forget(self, past: Past | None, solved: dict[str, Tensor] | None) -> None:
        self.past, self.solved = past, solved

    def _thin(self, count: float) -> None:
        """Let go of rows that weigh nothing; so many weigh anything."""
        past = self.past
        assert isinstance(past, Cat)
        if count < len(past.weight):
            order = (past.weight <= 0).sort(stable=True).indices[: int(count)]
            self.past = Cat(past.value[order], past.weight[order])

    def packed(self) -> list[Tensor] | None:
        """The past as tensors."""
        return self.memory.packed(self._whole())

    def _whole(self) -> Any:
        """The past, with all that came."""
        return self.past.caught_up(self.statistic) if isinstance(self.past, Behind) else self.past

    def restore(self, past: list[Tensor] | None, solved: dict[str, Tensor] | None) -> None:
        """Take back what `packed` and `solved` gave.

        Raises:
            CorruptFileError: damaged or forged.
        """
        taken = self.memory.unpacked(past, self.statistic)
        if solved is not None:
            self._check(solved, taken)
        self.past, self.solved = taken, solved

    def _check(self, solved: dict[str, Tensor], past: Past | None) -> None:
        if isinstance(self.solver, Starter):
            self.solver.check(solved, self.target)
            return
        if self.solver is None or past is None:
            raise CorruptFileError("what a solver kept goes with a tolerance and a past; give the state of one like it")
        summary: Any = past.summed(len(past), self.statistic) if isinstance(past, Queued) else past
        self.solver.check(solved, summary, self.statistic, self.target)


class Borne(Sum):
    """A sum, flat, and behind it that of the weighted rows themselves."""


@dataclass(frozen=True)
class WithMean(Statistic):
    """A sum and the sum of rows, from which the mean of the live batch is known."""

    statistic: Statistic
    kind: ClassVar[type[Summary]] = Borne

    def measure(self, features: Tensor, weights: Tensor) -> Borne:
        """Both; a weight has no gradient through the mean, which says where the rows are."""
        found = self.statistic.measure(features, weights)
        rows = weights.detach() @ features.to(weights.dtype)
        return Borne(torch.cat([found.value.flatten(), rows.to(found.value)]), found.weight)


def measured(memory: Memory, statistic: Statistic) -> Statistic:
    """What is measured of a batch."""
    return WithMean(statistic) if memory.riding and statistic.kind.reduction == "sum" else statistic


def own(batch: Summary, shape: torch.Size, statistic: Statistic) -> Summary:
    """The statistic's own summary of a batch, of this shape where it is borne."""
    if not isinstance(batch, Borne):
        return batch
    return statistic.kind(batch.value[: shape.numel()].view(shape), batch.weight)


def _mean(batch: Summary, shape: torch.Size) -> Tensor:
    """The mean of a batch's rows, but for a constant."""
    weight = batch.weight.detach()
    if isinstance(batch, Borne):
        return batch.value[shape.numel() :] / weight[0]
    weight = weight.to(batch.value)
    return weight @ batch.value / weight.sum()


def ridden(
    memory: Memory, past: Any, batch: Summary, rows: int, shape: torch.Size, statistic: Statistic
) -> tuple[Summary, Factor]:
    """What the memory reads, where the past rides on the batch's mean; the batch's share of the mass."""
    share = memory.share(past, rows)
    weight = 1 / share if memory.balanced else 1.0
    mean, live = _mean(batch, shape), own(batch, shape, statistic)
    step = mean - mean.detach()
    moving = statistic.kind(_times(weight, live.value), _times(weight, live.weight))
    population, share = memory.read(past, statistic.translated(moving, -weight * step), rows, statistic)
    return statistic.translated(population, step), share


def _times(factor: Factor, value: Tensor) -> Tensor:
    """The same value, and so many times its gradient."""
    still = value.detach()
    return still + factor * (value - still)


def followed(objective: Objective, memory: Memory, tolerance: float | None) -> Follower | Starter | None:
    """The objective's solver for a tolerance.

    Raises:
        InputError: not above 0; it has none; there is no memory that it could follow.
    """
    check("tolerance", tolerance, Positive | None)
    if tolerance is None:
        return None
    solver = objective.solver(tolerance)
    if isinstance(solver, Follower) and isinstance(memory, NoMemory):
        raise InputError("a tolerance is for populations with a memory; give one (ema, queue), or leave it out")
    if isinstance(solver, Follower) and memory.riding:
        raise InputError("a tolerance is for a memory that does not ride; leave out the tolerance, or riding")
    return solver


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
