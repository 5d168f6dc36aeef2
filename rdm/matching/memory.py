"""Memories: how a population goes beyond the live batch, as weights on the past.

A memory is a frozen dataclass of hyperparameters with two pure functions; the past itself is a `Past` that `Population`
or `rdm.Loss` keeps. `read` joins past and batch, and gives the share of the mass (and so of the gradient) that the live
batch keeps; `write` gives the next past, detached.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.files.schema import Check, Sizes, exactly, like, sequence, tensor
from rdm.matching.queued import Behind, Change, Queued
from rdm.matching.statistic import Cat, Factor, Statistic, Sum, Summary
from rdm.registry import memories

Past = Summary | Queued | Behind


class Memory(ABC):
    """What of the past the distance sees besides the live batch, and what of the batch's motion the past follows.

    `riding`: the past moves as the live batch's mean does, so that forces between them push neither; without it a past
    that lags drives the batch on. `balanced`: deviations from the mean have the whole population's weight, too.
    """

    keeps_rows: ClassVar[bool] = False  # the past is feature rows (`Cat`), not the objective's own summary
    riding: bool = False  # see `rdm.population.remembered`, with the formula
    balanced: bool = False

    @abstractmethod
    def share(self, past: Any, rows: int) -> Factor:
        """The share of the population's mass that a live batch of so many rows is."""

    @abstractmethod
    def read(self, past: Any, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, Factor]:
        """Population summary of past and batch (of so many rows), and the live batch's share of its mass."""

    @abstractmethod
    def write(
        self, past: Any, batch: Summary, statistic: Statistic | None = None, measured: Summary | None = None
    ) -> tuple[Past | None, Factor]:
        """The next past, and the share of its mass that it lacks, dropped to bound it.

        `batch` is the objective's summary, or the rows themselves where `keeps_rows`; of these `measured` is the
        summary, by which their `statistic` is kept up.
        """

    def change(self, past: Any, batch: Cat) -> Change | None:
        """How the population that `read` makes of past and batch differs from the past; None: not said."""
        return None

    def follow(self, past: Any, batch: Cat, statistic: Statistic) -> Past | None:
        """The next past, of which sums may be behind: what solvers take, who read `change` alone."""
        measured = statistic.measure(batch.value, batch.weight)
        return self.write(past, batch if self.keeps_rows else measured, statistic, measured)[0]

    def caught_up(self, past: Any, rows: int, statistic: Statistic) -> Any:
        """A past with the sums that `read` takes for so many rows; the same whenever it is asked for."""
        return past.caught_up(statistic) if isinstance(past, Behind) else past

    def effective(self, rows: int, share: float) -> int:
        """How many independent rows vary as little as the population that so many live ones keep a share of."""
        return round(rows / share)

    def most_rows(self, batch: int) -> int | None:
        """Rows that a past of rows holds at most, after batches of so many; None: nobody knows."""
        return None

    def packed(self, past: Any) -> list[Tensor] | None:
        """A past as tensors, for a checkpoint."""
        return None if past is None else [past.value, past.weight]

    def unpacked(self, kept: Sequence[Tensor] | None, statistic: Statistic) -> Past | None:
        """Inverse of `packed`, of what `held` has checked."""
        return None if kept is None else statistic.kind(*kept)

    def held(self, row: Tensor, statistic: Statistic) -> Check:
        """The check of a packed past: as a row "1 d" gives it, but for the number of rows."""
        return _closed(sequence(_parts(statistic.measure(row, _one(row)))))


def _check_following(memory: Memory) -> None:
    if memory.balanced and not memory.riding:
        raise InputError("balanced is of a riding memory: deviations alone would outweigh the mean; set riding as well")


def _one(row: Tensor) -> Tensor:
    return torch.ones(1, dtype=torch.float64, device=row.device)


def _parts(past: Summary) -> list[Check]:
    """Checks of a summary's value and weight."""
    shapes = [list(map(str, each.shape)) for each in (past.value, past.weight)]
    shapes = [["n", *shape[1:]] if isinstance(past, Cat) else shape for shape in shapes]
    value, weight = (" ".join(shape) for shape in shapes)
    return [tensor("float32 float64", value), tensor("float64", weight, low=0)]


def _closed(check: Check) -> Check:
    """The check with letters of its own."""
    return lambda value, where, sizes: check(value, where, {})


@memories.register("none")
@dataclass(frozen=True)
class NoMemory(Memory):
    """The population is the live batch: exact accumulation over its chunks, and nothing else."""

    def share(self, past: Any, rows: int) -> float:
        """1."""
        return 1.0

    def read(self, past: Any, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, float]:
        """The batch itself; share 1."""
        return batch, 1.0

    def most_rows(self, batch: int) -> int:
        """None."""
        return 0

    def write(
        self, past: Any, batch: Summary, statistic: Statistic | None = None, measured: Summary | None = None
    ) -> tuple[None, float]:
        """Nothing is kept."""
        return None, 0.0

    def held(self, row: Tensor, statistic: Statistic) -> Check:
        """None."""
        return exactly(None)


@memories.register("ema", examples=({"decay": 0.9}, {"decay": 0.6, "riding": True}))
@dataclass(frozen=True)
class EMA(Memory):
    r"""Exponential moving average of the statistic: past times beta plus batch times (1 - beta), each of mass 1.

    Source: Yang et al. (2026), "Representation Fréchet Loss", equation of the EMA estimator, for moments; here for
    every statistic. No bias correction: before the first write the population is the batch, and a warm start writes
    an average of many samples first.

    Rows of a `Cat` statistic keep the weights of the exact average, of mass 1, and the oldest are dropped as far as
    all rows ever dropped weigh at most `floor` in it (`Step.dropped`, what is missing now). The newest batch is never
    cut. So the mass newer than any step is that of the exact average, within `floor`.

    Units:
        The live batch keeps a share 1 - beta of the gradient; the mean age of a sample is beta / (1 - beta) steps.
        With `riding` that is the share of deviations from the batch's mean, and 1 the mean's; `balanced` makes both 1.
    Cost:
        `Sum`: one summary; followed within a tolerance, rows of as many bits. `Cat`: rows of at most log(1 / floor) /
        (1 - beta) + 1 batches, of which a warm start is one: 300 batches at the default, 3,000 at .999. Where that is
        too much, as for kernels of many rows a step, take a smaller decay or a `Queue`.

    Raises:
        InputError: decay outside [0, 1) or floor outside [0, 1); balanced without riding.
    """

    decay: float = 0.99
    floor: float = 0.05
    riding: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        _check_following(self)
        if not (0 <= self.decay < 1 and 0 <= self.floor < 1):
            raise InputError(f"expected 0 <= decay < 1 and 0 <= floor < 1; got {self.decay} and {self.floor}")

    def share(self, past: Any, rows: int) -> float:
        """1 - decay once there is a past."""
        return 1.0 if past is None else 1 - self.decay

    def read(self, past: Any, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, float]:
        """Decayed past and batch."""
        if past is None:
            return batch, 1.0
        return past.mixed(self.decay / past.mass, batch, (1 - self.decay) / batch.mass), self.share(past, rows)

    def change(self, past: Any, batch: Cat) -> Change | None:
        """All decays, and the batch comes."""
        return None if past is None else Change(self.decay, batch.scale((1 - self.decay) / batch.mass))

    def follow(self, past: Any, batch: Cat, statistic: Statistic) -> Past | None:  # noqa: D102
        if (change := self.change(past, batch)) is None:
            return super().follow(past, batch, statistic)
        return (past if isinstance(past, Behind) else Behind(past)).after(change, statistic)

    def effective(self, rows: int, share: float) -> int:
        """1 over the sum of squared weights of an average that has run for long."""
        return round(rows * (2 - share) / share)

    def most_rows(self, batch: int) -> int:
        """As many batches as weigh more than `floor` with all after them, and one in which that is reached."""
        batches = math.log(self.floor) / math.log(self.decay) + 1 if self.decay and self.floor else math.inf
        return batch * (1 if self.decay == 0 else math.ceil(min(batches, 2**24)))

    def write(
        self, past: Any, batch: Summary, statistic: Statistic | None = None, measured: Summary | None = None
    ) -> tuple[Summary, Factor]:
        """The same average, detached, without its oldest rows: its mass is 1 less what is missing."""
        batch, share = batch.detach(), 1 / batch.mass.detach()
        if past is None:
            return batch.scale(share), 0.0
        missing = self.decay * (1 - past.mass)  # what was dropped before fades as fast as what is kept
        average = past.mixed(self.decay, batch, (1 - self.decay) * share, drop=self.floor - missing)
        return average, (1 - average.mass).clamp_min(0.0)


@memories.register("queue", examples=({"size": 100}, {"size": 100, "riding": True, "balanced": True}))
@dataclass(frozen=True)
class Queue(Memory):
    """First in, first out: the newest `size` rows, of which the live batch replaces the oldest.

    Source: Yang et al. (2026), "Representation Fréchet Loss", the queue estimator, for moments; here for every
    statistic, since the rows are kept. A batch of n rows has mass n, however its weights share it out.

    Of a `Sum` statistic the sum is kept too: what comes is added and what leaves is measured and subtracted. It is that
    of all rows measured anew, within 1e-12 of its largest entry row by row: sums of new rows are begun anew each time
    that the queue has turned over, and where what left was so large that its rounding would show, what is there is
    measured again.

    Units:
        The live batch of n rows keeps a share n / size of the gradient (1 while it is the only content); `riding` and
        `balanced` are as for `EMA`.
    Cost:
        size d numbers. `Sum`: two summaries, and one measurement of n rows a step, whatever the size; followed within a
        tolerance none, and one of all rows for an exact step. `Cat`: a copy of the rows a step.

    Raises:
        InputError: size below 1; balanced without riding.
    """

    size: int = 50_000
    riding: bool = False
    balanced: bool = False

    keeps_rows = True

    def __post_init__(self) -> None:
        _check_following(self)
        if self.size < 1:
            raise InputError(f"expected a queue of size >= 1; got {self.size}")

    def _kept(self, past: Any, rows: int) -> int:
        """Past rows that a batch leaves in."""
        return min(len(past or ()), max(self.size - rows, 0))

    def share(self, past: Any, rows: int) -> Factor:
        """Its rows among all that are seen."""
        kept = self._kept(past, rows)
        return 1.0 if kept == 0 else rows / (past.weight[-kept:].sum() + rows)

    def read(self, past: Any, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, Factor]:
        """The newest size - rows past rows, measured, and the batch."""
        kept = self._kept(past, rows)
        if past is None or kept == 0:
            return batch, 1.0
        if statistic.kind is Sum:
            old = past.summed(kept, statistic)
        else:
            newest = past.newest(kept)
            old = statistic.measure(newest.value, newest.weight)
        return statistic.kind.merge([old, batch.scale(rows / batch.mass)]), rows / (old.mass + rows)

    def most_rows(self, batch: int) -> int:
        """`size`."""
        return self.size

    def write(
        self, past: Any, batch: Summary, statistic: Statistic | None = None, measured: Summary | None = None
    ) -> tuple[Queued, float]:
        """The newest `size` rows; older ones are forgotten by design and do not count as dropped.

        The sum is over those that a next batch of as many rows leaves in.
        """
        n, queue = len(batch.value), past or Queued()
        counted = batch.detach().scale(n / batch.mass)
        assert isinstance(counted, Cat)
        left = max(self.size - n, 0)
        if statistic is None or not isinstance(measured, Sum) or left == 0:
            return queue.pushed(counted, self.size), 0.0
        value = measured.detach().scale(n / measured.mass).value
        queue = queue.followed(left, statistic).pushed(counted, self.size, value)
        return queue.followed(left, statistic), 0.0

    def change(self, past: Any, batch: Cat) -> Change | None:
        """The batch comes, and the oldest rows leave."""
        n = len(batch.weight)
        kept = self._kept(past, n)
        if kept == 0:
            return None
        gone, come = past.newest(len(past), but=kept), batch.scale(n / batch.mass)
        return Change(1.0, Cat.merge([come, gone.scale(-1.0)]))

    def follow(self, past: Any, batch: Cat, statistic: Statistic) -> Past | None:  # noqa: D102
        return self.write(past, batch)[0]

    def caught_up(self, past: Any, rows: int, statistic: Statistic) -> Any:  # noqa: D102
        return past if past is None or statistic.kind is not Sum else past.followed(self._kept(past, rows), statistic)

    def packed(self, past: Any) -> list[Tensor] | None:
        """Rows and weights, and where it is kept the sum."""
        return None if past is None else past.packed()

    def unpacked(self, kept: Sequence[Tensor] | None, statistic: Statistic) -> Queued | None:
        """Inverse of `packed`.

        Raises:
            CorruptFileError: a sum that is not that of the rows.
        """
        return None if kept is None else Queued.unpacked(kept, statistic)

    def held(self, row: Tensor, statistic: Statistic) -> Check:
        """The check of rows, and of a sum where there is one."""
        one = _one(row)
        rows = _parts(Cat(row, one))
        example = statistic.measure(row, one).value
        sums = [like(example), like(example), like(example[..., 0], low=0), tensor("int64", "2", low=0)]
        with_sum, without = _closed(sequence([*rows, *sums])), _closed(sequence(rows))
        summed = statistic.kind is Sum

        def check(value: Any, where: str, sizes: Sizes) -> None:
            (with_sum if summed and isinstance(value, list) and len(value) > 2 else without)(value, where, sizes)

        return check
