"""Which items a step of training reads: a function of seed, epoch and step, whatever the ranks and workers."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rdm.data.dataset import Data, Part
from rdm.distributed import rank, world_size
from rdm.randomness import stream
from rdm.timing.regions import region


class Order:
    """The item at each place of an endless reading: every one once an epoch, in an order drawn by seed and epoch."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed
        self._epoch, self._items = -1, torch.empty(0)

    def span(self, first: int, last: int) -> list[int]:
        """Items at places from `first` up to `last`, left out; holds one epoch's order at a time."""
        found: list[int] = []
        while first < last:
            epoch, start = divmod(first, self.n)
            stop = min(start + last - first, self.n)
            found += self._of(epoch)[start:stop].tolist()
            first += stop - start
        return found

    def _of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._items = torch.randperm(self.n, generator=stream(self.seed, "epoch", epoch))
            self._epoch = epoch
        return self._items


class Rows(NamedTuple):
    """This rank's rows of a step's batch."""

    items: Tensor
    labels: Tensor
    numbers: list[int]  # of the rows in the batch of all ranks: what is drawn for a row is drawn by its number


class Feed:
    """Batches of a data set by step: step s reads places s b to (s + 1) b of the order, each rank a run of them.

    Reads ahead from the step that is asked for, so that a resumed run reads what it would have read.
    """

    def __init__(self, data: Data, size: int, seed: int):
        self._data, self._size, self._order = data, size, Order(len(data), seed)
        self._mine = portion(size, rank(), world_size())
        self._parts: Iterator[Part] = iter(())
        self._next = -1

    @region("data and noise")
    def at(self, step: int) -> Rows:
        """This rank's rows of a step; fewer where items are left out."""
        if step != self._next:
            self._parts = self._data.read(self._wanted(step))
        self._next = -1  # until it is read
        part = next(self._parts)
        self._next = step + 1
        first = self._mine.start
        return Rows(part.items, part.labels, [first + k for k in part.kept])

    def close(self) -> None:
        """End the processes that read ahead."""
        self._parts, self._next = iter(()), -1

    def _wanted(self, step: int) -> Iterator[list[int]]:
        for k in itertools.count(step):
            yield self._order.span(k * self._size + self._mine.start, k * self._size + self._mine.stop)


def portion(n: int, part: int, parts: int) -> range:
    """The part's of n rows: runs of equal length, the first ones longer by one where it does not come out even."""
    each, more = divmod(n, parts)
    start = part * each + min(part, more)
    return range(start, start + each + (part < more))
