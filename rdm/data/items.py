"""Items of sources end to end, read in numbered batches by worker processes.

Workers send bytes through pipes: torch's own way, shared tensors, ends in silence where /dev/shm is full, as it soon
is in a container. 8-bit pictures go as 8 bits, which costs no more than sharing floats does.
"""

import errno
import itertools
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from rdm.data.source import BrokenItem, Form, Item, Source, hashed, unit
from rdm.errors import InputError, printable


class Batch(NamedTuple):
    """Items of one list of numbers, read."""

    number: int
    values: Tensor
    labels: Tensor
    keys: Tensor  # 63-bit
    fresh: Tensor  # bool: of the fresh split
    broken: list[str]  # one line each
    depths: set[str]
    error: str  # what stops the run, or empty
    kept: list[int]  # which of the numbers `values` are; those of broken items are missing


@dataclass(frozen=True)
class Items:
    """Sources end to end as numbered batches.

    Args:
        sources: with True for a fresh split, False for the reference, None to split by the items' content.
        share: of the items that are split, how many are fresh: those whose hash falls below it, so that equal items
            fall on one side, whatever their names and order.
    """

    sources: Sequence[tuple[Source, bool | None]]
    form: Form
    first: Item
    share: float = 0.0
    seed: int = 0
    size: int = 64

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.total // self.size)

    @property
    def total(self) -> int:
        """Number of items."""
        return sum(len(source) for source, _ in self.sources)

    def span(self, number: int) -> range:
        """The items of a batch of consecutive ones."""
        return range(number * self.size, min((number + 1) * self.size, self.total))

    def gather(self, number: int, wanted: Sequence[int], begun: Callable[[int], None] = lambda k: None) -> Batch:
        """Items by number; what is broken is listed, not raised. `begun` is told each one before it is read."""
        found: list[tuple[Item, bool]] = []
        kept: list[int] = []
        broken, error = [], ""
        for place, k in enumerate(wanted):
            source, i, fresh = self.place(k)
            begun(k)
            try:
                item = self.form.item(source, i, self.first)
            except BrokenItem as problem:
                broken.append(str(problem))
                continue
            except InputError as problem:
                error = error or str(problem)
                continue
            found.append((item, self.is_fresh(item) if fresh is None else fresh))
            kept.append(place)
        values = torch.stack([item.value for item, _ in found]) if found else self.first.value[None][:0]
        return Batch(
            number,
            values,
            torch.tensor([item.label for item, _ in found], dtype=torch.int64),
            torch.tensor([hashed(self.seed, item.name, item.content) for item, _ in found], dtype=torch.int64),
            torch.tensor([fresh for _, fresh in found], dtype=torch.bool),
            broken,
            {item.depth for item, _ in found},
            error,
            kept,
        )

    def names(self, batch: Batch) -> list[str]:
        """What the sources call the items of a batch of consecutive ones."""
        span = self.span(batch.number)
        places = (self.place(span[k]) for k in batch.kept)
        return [source.name(i) for source, i, _ in places]

    def place(self, k: int) -> tuple[Source, int, bool | None]:
        """The k-th item's source, its number there and its side."""
        for source, side in self.sources:
            if k < len(source):
                return source, k, side
            k -= len(source)
        raise IndexError(k)

    def is_fresh(self, item: Item) -> bool:
        """Whether an item of a source that is split falls on the fresh side."""
        return hashed("split", item.content) < self.share * 2**63

    @contextmanager
    def read(self, numbers: Iterable[int], *, workers: int) -> Iterator[Iterator[Batch]]:
        """Batches of consecutive items, of these numbers in this order (see `gathered`)."""
        with self.gathered(((number, self.span(number)) for number in numbers), workers=workers) as batches:
            yield batches

    @contextmanager
    def gathered(self, lists: Iterable[tuple[int, Sequence[int]]], *, workers: int) -> Iterator[Iterator[Batch]]:
        """A batch for each numbered list of items, in this order, read by worker processes; lists may be endless.

        Raises:
            RuntimeError: a worker was killed; the text says what it was reading.
        """
        if workers < 1:
            yield itertools.starmap(self.gather, lists)
            return
        reading = RawArray("q", 2 * workers)
        try:
            loader = DataLoader(
                _Reader(self, reading),
                batch_size=None,
                sampler=lists,
                num_workers=workers,
                worker_init_fn=_apart,
                prefetch_factor=2,
                collate_fn=_as_is,
            )
            yield map(_received, loader)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise RuntimeError(
                f"{workers} reading processes cannot start ({error}); enlarge /dev/shm or give --workers 0"
            ) from error
        except RuntimeError as error:
            raise (self._killed(error, reading) or error) from error.__cause__

    def _killed(self, error: RuntimeError, reading: Any) -> RuntimeError | None:
        """What torch says of a worker that is gone, with the item that it was reading."""
        if not str(error).startswith("DataLoader worker"):
            return None
        gone = {int(pid) for pid in re.findall(r"\d+", str(error))}
        found = [k for pid, k in zip(reading[::2], reading[1::2], strict=True) if pid in gone]
        source, i, _ = self.place(found[0] if found else 0)
        return RuntimeError(
            printable(f"a reading process was killed at {source.path}: {source.name(i)}; it may need ")
            + "more memory than there is; give fewer --workers, or 0 to see the item's own error"
        )

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """A uniform draw of items with their labels, the same at every call; broken ones are left out."""
        order = torch.randperm(self.total, generator=torch.Generator().manual_seed(0))[:count]
        found, cause = [], None
        for k in sorted(order.tolist()):
            source, i, _ = self.place(k)
            try:
                found.append(self.form.item(source, i, self.first))
            except BrokenItem as problem:
                cause = cause or problem
        if not found:
            raise InputError(f"none of {len(order)} items can be read; {cause}")
        return torch.stack([item.value for item in found]), torch.tensor([item.label for item in found])


@dataclass(frozen=True)
class _Reader(TorchDataset):
    """Items in a worker process, which notes its number and the item that it reads in shared memory."""

    items: Items
    reading: Any  # pid and item by worker

    def __getitem__(self, wanted: tuple[int, Sequence[int]]) -> Batch:
        worker = get_worker_info()
        assert worker is not None

        def begun(k: int) -> None:
            self.reading[2 * worker.id : 2 * worker.id + 2] = os.getpid(), k

        batch = self.items.gather(*wanted, begun)
        return batch._replace(**{key: _sent(value) for key, value in batch._asdict().items()})


def _apart(worker: int) -> None:
    """Of the signals that end a command, a worker gets none: its parent finishes what it does and ends it."""
    os.setpgid(0, 0)  # Ctrl-C goes to the whole group of the terminal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's way to end it, in the place of what it inherits


def _sent(value: Any) -> Any:
    """A tensor as an array, of 8 bits where they hold the same values."""
    if not isinstance(value, Tensor):
        return value
    array = value.numpy()
    if array.dtype == np.float32 and array.ndim == 4 and array.size and 0 <= array.min() and array.max() <= 1:
        small = (array * 255).round().astype(np.uint8)
        return small if np.array_equal(unit(small, ""), array) else array
    return array


def _received(batch: Batch) -> Batch:
    """The batch that was sent."""

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return torch.from_numpy(unit(value, "") if value.dtype == np.uint8 else value)

    return batch._replace(**{key: tensor(value) for key, value in batch._asdict().items()})


def _as_is(batch: Any) -> Any:
    """Instead of torch's collation, which makes shared tensors of arrays."""
    return batch


def first_item(source: Source, form: Form) -> Item:
    """The first item that can be read, which all others must be like; in colour as soon as one of them is."""
    cause = None
    for i in range(len(source)):
        try:
            first = form.item(source, i)
        except BrokenItem as problem:
            cause = cause or problem
            continue
        return _coloured(source, form, i, first)
    raise InputError(f"none of the {len(source)} items can be read; {cause}")


def _coloured(source: Source, form: Form, i: int, first: Item) -> Item:
    """A grey first item with three channels where a picture after it has, whatever their order."""
    if source.kind != "images" or form.channels is not None or len(first.value) != 1:
        return first
    grey = all(source.grey(k) for k in range(i + 1, len(source)))
    return first if grey else replace(form, channels=3).item(source, i)
