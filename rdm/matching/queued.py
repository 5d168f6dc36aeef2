"""Rows in the order in which they came, and the running sum of a statistic over the newest of them; sums behind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rdm.errors import CorruptFileError
from rdm.matching.statistic import Cat, Statistic, Sum
from rdm.timing.reads import usual

PIECE = 1024  # rows that are let go of together
WORN = 64.0  # how far a sum may shrink by what leaves it: it has lost so many times the rounding of one addition
ROUNDING = 1e-9  # of what a file's sum may be off from its rows'


@dataclass(frozen=True)
class Running:
    """Values of a `Sum` over two runs of rows: `old` ones, which leave, and the `new`, which have come since.

    Rows are only ever added to the new and subtracted from the old. When the last of the old has left, the new become
    the old: rounding is forgotten at each turnover, without measuring anything for it.
    """

    old: Tensor
    new: Tensor
    peak: Tensor  # size of the old before anything left, by row of the value
    rows: tuple[int, int]

    @property
    def value(self) -> Tensor:
        """Of all rows."""
        return self.old + self.new

    @property
    def worn(self) -> bool:
        """Whether what has left was so much larger than what is here that its rounding shows."""
        return usual((self.peak > WORN * torch.maximum(_size(self.old), _size(self.new))).any(), False)

    @classmethod
    def begun(cls, old: Tensor, rows: int) -> "Running":
        """Over rows of which all may leave."""
        return cls(old, torch.zeros_like(old), _size(old), (rows, 0))

    def added(self, value: Tensor, rows: int) -> "Running":
        """With rows that come."""
        return replace(self, new=self.new + value, rows=(self.rows[0], self.rows[1] + rows))

    def turned(self) -> "Running":
        """The new rows as the old, without those that were."""
        return Running.begun(self.new, self.rows[1])


def _size(value: Tensor) -> Tensor:
    """Largest entry by row of a value."""
    return torch.linalg.vector_norm(value, ord=torch.inf, dim=-1)


class Change(NamedTuple):
    """A population's sums are those of the one before times `kept`, and those of `rows`, of which the live come first.

    Rows that left have weights below 0.
    """

    kept: float
    rows: Cat


@dataclass(frozen=True)
class Behind:
    """A sum, and what has changed since, the oldest first: measured in one go, for a copy of the sum now and then."""

    sum: Sum
    changes: tuple[Change, ...] = ()

    def after(self, change: Change, statistic: Statistic) -> "Behind":
        """With a copy of one more; when rows have come to as many bits as the sum has, none is left."""
        kept, rows = change
        changes = (*self.changes, Change(kept, Cat(rows.value.clone(), rows.weight.clone())))
        later = Behind(self.sum, changes)
        if sum(len(each.rows.weight) for each in changes) < 2 * rows.value.shape[1]:
            return later
        return Behind(later.caught_up(statistic))

    @torch.no_grad()
    def caught_up(self, statistic: Statistic) -> Sum:
        """The sum of everything."""
        weight = self.sum.weight
        for kept, rows in self.changes:
            weight = weight * weight.new_tensor([kept, kept**2]) + torch.stack([rows.mass, rows.weight.square().sum()])
        return Sum(statistic.run_on(self.sum.value, self.changes), weight)


@dataclass(frozen=True)
class Queued:
    """Weighted rows in pieces, the oldest first; nothing is copied when rows come or go."""

    pieces: tuple[Cat, ...] = ()
    running: Running | None = None  # over the newest rows

    @property
    def value(self) -> Tensor:
        """All rows, "n d"."""
        return self.newest(len(self)).value

    @property
    def weight(self) -> Tensor:
        """Their weights."""
        return torch.cat([piece.weight for piece in self.pieces])

    @property
    def mass(self) -> Tensor:
        """Their total weight."""
        return self.weight.sum()

    def __len__(self) -> int:
        return sum(len(piece.weight) for piece in self.pieces)

    def pushed(self, rows: Cat, size: int, value: Tensor | None = None) -> "Queued":
        """With a copy of newer rows, and without the oldest over `size`, which no sum is over; `value` is theirs."""
        values, weights = rows.value[-size:].split(PIECE), rows.weight[-size:].split(PIECE)
        added = [Cat(v.clone(), w.clone()) for v, w in zip(values, weights, strict=True)]
        pieces = (*self.pieces, *added)
        excess = max(0, len(Queued(pieces)) - size)
        while pieces and excess >= len(pieces[0].weight):
            excess -= len(pieces[0].weight)
            pieces = pieces[1:]
        if excess:
            first = pieces[0]
            pieces = (Cat(first.value[excess:], first.weight[excess:]), *pieces[1:])
        if value is None:
            return Queued(pieces)
        run, n = self.running, len(rows.weight)
        return Queued(pieces, Running.begun(value, n) if run is None else run.added(value, n))

    def followed(self, count: int, statistic: Statistic) -> "Queued":
        """With the sum over the newest `count` rows, or all if they are fewer."""
        return replace(self, running=self.over(min(len(self), count), statistic))

    def newest(self, count: int, *, but: int = 0) -> Cat:
        """A copy of the newest rows, but for the very newest."""
        start, stop, at, found = len(self) - count, len(self) - but, 0, []
        for piece in self.pieces:
            here = slice(max(start - at, 0), max(stop - at, 0))
            at += len(piece.weight)
            if len(some := piece.weight[here]):
                found.append(Cat(piece.value[here], some))
        if not found:
            return Cat(self.pieces[0].value[:0], self.pieces[0].weight[:0])
        return Cat.merge(found)

    @torch.no_grad()
    def over(self, count: int, statistic: Statistic) -> Running | None:
        """The sum over the newest `count` rows, by what they differ by from those that it was over before."""
        if count == 0:
            return None
        run, known = self.running, 0 if self.running is None else sum(self.running.rows)
        if count == known:
            return run
        if run is None or count > known:
            older = statistic.measure(*_pair(self.newest(count, but=known))).value
            if run is None:
                return Running.begun(older, count)
            old = run.old + older
            peak = torch.maximum(run.peak, _size(old))
            return Running(old, run.new, peak, (run.rows[0] + count - known, run.rows[1]))
        if (leaving := known - count) >= run.rows[0]:
            leaving -= run.rows[0]
            run = run.turned()
        if leaving:
            gone = statistic.measure(*_pair(self.newest(count + leaving, but=count))).value
            run = replace(run, old=gone.neg_().add_(run.old), rows=(run.rows[0] - leaving, run.rows[1]))
            if run.worn:
                left = statistic.measure(*_pair(self.newest(count, but=run.rows[1]))).value
                run = replace(run, old=left, peak=_size(left))
        return run

    def summed(self, count: int, statistic: Statistic) -> Sum:
        """The statistic of the newest `count` rows."""
        run = self.over(count, statistic)
        assert run is not None
        weight = self.weight[-count:]
        return Sum(run.value, torch.stack([weight.sum(), weight.square().sum()]))

    def packed(self) -> list[Tensor]:
        """As tensors."""
        run, rows = self.running, [self.value, self.weight]
        return rows if run is None else [*rows, run.old, run.new, run.peak, torch.tensor(run.rows)]

    @classmethod
    def unpacked(cls, kept: Sequence[Tensor], statistic: Statistic) -> "Queued":
        """Inverse of `packed`.

        Raises:
            CorruptFileError: a sum that is not that of the rows.
        """
        value, weight, *sums = kept
        queue = cls().pushed(Cat(value, weight), len(weight))
        if not sums:
            return queue
        old, new, peak, rows = sums
        run = Running(old, new, peak, (int(rows[0]), int(rows[1])))
        if not 0 < sum(run.rows) <= len(queue) or not queue._agrees(run, statistic):
            raise CorruptFileError("the running sum of a queue is not that of its rows; give the state of one like it")
        return replace(queue, running=run)

    @torch.no_grad()
    def _agrees(self, run: Running, statistic: Statistic) -> bool:
        """Whether sums are those of the rows, but for rounding."""
        (old, new), scale, apart = run.rows, torch.zeros_like(run.peak), []
        for value, count, but in ((run.new, new, 0), (run.old, old + new, new)):
            rest = value.clone()
            held = self.newest(count, but=but)
            for piece in zip(*(each.split(PIECE) for each in _pair(held)), strict=True) if len(held.weight) else ():
                part = statistic.measure(*piece).value
                rest, scale = rest - part, scale + _size(part)
            apart.append(_size(rest))
        return all(bool((each <= ROUNDING * scale).all()) for each in apart)


def _pair(rows: Cat) -> tuple[Tensor, Tensor]:
    return rows.value, rows.weight
