"""Items of sources end to end, read in numbered batches by worker processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from rdm.errors import InputError
from rdm.source import BrokenItem, Form, Item, Source, hashed


class Batch(NamedTuple):
    """Consecutive items, read."""

    number: int
    values: Tensor
    labels: Tensor
    keys: Tensor  # 63-bit
    fresh: Tensor  # bool: of the fresh split
    broken: list[str]  # one line each
    depths: set[str]
    error: str  # what stops the run, or empty


@dataclass(frozen=True)
class Items(TorchDataset):
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

    def __getitem__(self, number: int) -> Batch:
        """One batch; what is broken is listed, not raised."""
        found: list[tuple[Item, bool]] = []
        broken, error = [], ""
        for k in range(number * self.size, min((number + 1) * self.size, self.total)):
            source, i, fresh = self.place(k)
            try:
                item = self.form.item(source, i, self.first)
            except BrokenItem as problem:
                broken.append(str(problem))
                continue
            except InputError as problem:
                error = error or str(problem)
                continue
            found.append((item, self.is_fresh(item) if fresh is None else fresh))
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
        )

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

    def read(self, numbers: Sequence[int], *, workers: int) -> Iterator[Batch]:
        """Batches of these numbers in this order, read by worker processes."""
        options: dict[str, Any] = {"num_workers": workers, "prefetch_factor": 2} if workers else {}
        yield from DataLoader(self, batch_size=None, sampler=list(numbers), **options)

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
