"""Memories: how a population goes beyond the live batch, as weights on the past.

A memory is a frozen dataclass of hyperparameters with two pure functions; the past itself is a `Summary` that
`Population` keeps. `read` joins past and batch, and gives the share of the mass (and so of the gradient) that the
live batch keeps; `write` gives the next past, detached.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.files.schema import Check, exactly, sequence, tensor
from rdm.matching.statistic import Cat, Statistic, Summary
from rdm.registry import memories


class Memory(ABC):
    """What of the past the distance sees besides the live batch."""

    keeps_rows: ClassVar[bool] = False  # the past is feature rows (`Cat`), not the objective's own summary

    @abstractmethod
    def read(self, past: Summary | None, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, float]:
        """Population summary of past and batch (of so many rows), and the live batch's share of its mass."""

    @abstractmethod
    def write(self, past: Summary | None, batch: Summary) -> tuple[Summary | None, float]:
        """The next past, and the share of its mass that it lacks, dropped to bound it.

        `batch` is the objective's summary, or the rows themselves where `keeps_rows`.
        """

    def effective(self, rows: int, share: float) -> int:
        """How many independent rows vary as little as the population that so many live ones keep a share of."""
        return round(rows / share)

    def held(self, row: Tensor, statistic: Statistic) -> Check:
        """The check of a past's value and weight: as a row "1 d" gives them, but for the number of rows."""
        one = torch.ones(1, dtype=torch.float64, device=row.device)
        past = Cat(row, one) if self.keeps_rows else statistic.measure(row, one)
        shapes = [list(map(str, each.shape)) for each in (past.value, past.weight)]
        shapes = [["n", *shape[1:]] if isinstance(past, Cat) else shape for shape in shapes]
        value, weight = (" ".join(shape) for shape in shapes)
        both = sequence([tensor("float32 float64", value), tensor("float64", weight, low=0)])
        return lambda pair, where, sizes: both(pair, where, {})


@memories.register("none")
@dataclass(frozen=True)
class NoMemory(Memory):
    """The population is the live batch: exact accumulation over its chunks, and nothing else."""

    def read(self, past: Summary | None, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, float]:
        """The batch itself; share 1."""
        return batch, 1.0

    def write(self, past: Summary | None, batch: Summary) -> tuple[None, float]:
        """Nothing is kept."""
        return None, 0.0

    def held(self, row: Tensor, statistic: Statistic) -> Check:
        """None."""
        return exactly(None)


@memories.register("ema", examples=({"decay": 0.9},))
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
    Cost:
        `Sum`: one summary. `Cat`: rows of at most log(1 / floor) / (1 - beta) + 1 batches, of which a warm start is
        one: 300 batches at the default, 3,000 at .999. Where that is too much, as for kernels of many rows a step,
        take a smaller decay or a `Queue`.

    Raises:
        InputError: decay outside [0, 1) or floor outside [0, 1).
    """

    decay: float = 0.99
    floor: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.floor < 1):
            raise InputError(f"expected 0 <= decay < 1 and 0 <= floor < 1; got {self.decay} and {self.floor}")

    def read(self, past: Summary | None, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, float]:
        """Decayed past and batch; share 1 - decay once there is a past."""
        if past is None:
            return batch, 1.0
        old, new = past.scale(self.decay / past.mass), batch.scale((1 - self.decay) / batch.mass)
        return statistic.kind.merge([old, new]), 1 - self.decay

    def effective(self, rows: int, share: float) -> int:
        """1 over the sum of squared weights of an average that has run for long."""
        return round(rows * (2 - share) / share)

    def write(self, past: Summary | None, batch: Summary) -> tuple[Summary, float]:
        """The same average, detached, without its oldest rows: its mass is 1 less what is missing."""
        batch = batch.detach().scale(1 / batch.mass)
        if past is None:
            return batch, 0.0
        missing = self.decay * (1 - float(past.mass))  # what was dropped before fades as fast as what is kept
        kept = past.scale(self.decay).prune(self.floor - missing)
        average = type(batch).merge([kept, batch.scale(1 - self.decay)])
        return average, max(0.0, 1 - float(average.mass))


@memories.register("queue", examples=({"size": 100},))
@dataclass(frozen=True)
class Queue(Memory):
    """First in, first out: the newest `size` rows, of which the live batch replaces the oldest.

    Source: Yang et al. (2026), "Representation Fréchet Loss", the queue estimator, for moments; here for every
    statistic, since the rows are kept and measured again with each batch. A batch of n rows has mass n, however its
    weights share it out.

    Units:
        The live batch of n rows keeps a share n / size of the gradient (1 while it is the only content).
    Cost:
        size d numbers, and one measurement of them a step.

    Raises:
        InputError: size below 1.
    """

    size: int = 50_000

    keeps_rows = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"expected a queue of size >= 1; got {self.size}")

    def read(self, past: Summary | None, batch: Summary, rows: int, statistic: Statistic) -> tuple[Summary, float]:
        """The newest size - rows past rows, measured, and the batch."""
        kept = max(self.size - rows, 0)
        if past is None or kept == 0:
            return batch, 1.0
        old = statistic.measure(past.value[-kept:], past.weight[-kept:])
        return statistic.kind.merge([old, batch.scale(rows / batch.mass)]), float(rows / (old.mass + rows))

    def write(self, past: Summary | None, batch: Summary) -> tuple[Summary, float]:
        """The newest `size` rows; older ones are forgotten by design and do not count as dropped."""
        counted = batch.detach().scale(len(batch.value) / batch.mass)
        merged = counted if past is None else Cat.merge([past, counted])
        return Cat(merged.value[-self.size :], merged.weight[-self.size :]), 0.0
