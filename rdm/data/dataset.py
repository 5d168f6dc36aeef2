"""Data sets: items by number, in memory or read while they are used."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rdm.data.items import Items, first_item
from rdm.data.source import Form, open_source
from rdm.errors import InputError
from rdm.escape import brief


class Part(NamedTuple):
    """Items that were asked for by number."""

    items: Tensor
    labels: Tensor  # int64, -1 where an item has no class
    kept: Sequence[int]  # which of the numbers they are; what cannot be read is left out


class Data(ABC):
    """Items by number, each with a class, -1 where it has none; one loss or several read them (`rdm.data.feed`)."""

    name: str
    labels: Tensor | None  # classes of all items, int64; None where not all have one

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def read(self, batches: Iterable[Sequence[int]]) -> Iterator[Part]:
        """Items of these numbers, batch by batch; may read ahead, and ends what reads when it is closed."""

    @property
    def form(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of an item as `read` gives it: the first one's."""
        (part,) = self.read([[0]])
        return tuple(part.items.shape[1:]), part.items.dtype

    @property
    def held(self) -> int:
        """Bytes in memory on its device; 0 for items that are read while they are used."""
        return 0

    @abstractmethod
    def to(self, device: torch.device | str) -> "Data":
        """The same data on a device."""


@dataclass(frozen=True, eq=False)
class Dataset(Data):
    """Items in memory: pictures, sound or any other tensors, all called `images`."""

    name: str
    images: Tensor  # n ...; pictures are n c h w in [0, 1], waveforms n samples in [-1, 1]
    labels: Tensor  # type: ignore[override]  # n, int64
    classes: int

    __repr__ = brief

    def __len__(self) -> int:
        return len(self.images)

    @property
    def held(self) -> int:
        """Of items and labels."""
        return self.images.nbytes + self.labels.nbytes

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def read(self, batches: Iterable[Sequence[int]]) -> Iterator[Part]:
        """Items of these numbers, batch by batch."""
        for numbers in batches:
            rows = torch.tensor(numbers, dtype=torch.int64).to(self.images.device, non_blocking=True)
            yield Part(self.images[rows], self.labels[rows], range(len(numbers)))


@dataclass(frozen=True, eq=False)
class Stored(Data):
    """Items on disk, read by worker processes while they are used: what a source holds, of any size."""

    name: str
    items: Items
    workers: int = 0
    skip_broken: bool = False
    device: torch.device | str = "cpu"

    @classmethod
    def open(
        cls,
        path: str | Path,
        size: int | None = None,
        channels: int | None = None,
        workers: int = 0,
        skip_broken: bool = False,
    ) -> "Stored":
        """What lies at a path, in any form that `rdm reference` reads (see the data set `files`).

        Raises:
            InputError: nothing there that can be read.
        """
        source, form = open_source(Path(path)), Form(size, channels)
        return cls(str(path), Items([(source, False)], form, first_item(source, form)), workers, skip_broken)

    def __len__(self) -> int:
        return self.items.total

    @cached_property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        """Classes of all items, as the source gives them without reading the items."""
        found = [source.label(i) for source, _ in self.items.sources for i in range(len(source))]
        return None if min(found) < 0 else torch.tensor(found).to(self.device)

    def to(self, device: torch.device | str) -> "Stored":
        """The same items, handed out on a device."""
        return replace(self, device=device)

    def read(self, batches: Iterable[Sequence[int]]) -> Iterator[Part]:
        """Items of these numbers, batch by batch, floating-point ones as float32.

        Raises:
            InputError: an item is broken and `skip_broken` is off, or is unlike the first one.
            RuntimeError: a worker was killed.
        """
        said: set[str] = set()
        with self.items.gathered(enumerate(batches), workers=self.workers) as found:
            for batch in found:
                if batch.error:
                    raise InputError(batch.error)
                if batch.broken and not self.skip_broken:
                    raise InputError(f"{batch.broken[0]}; mend or remove it, or give skip_broken = True")
                for line in sorted({*batch.broken} - said):
                    warnings.warn(f"{line}; it is left out", stacklevel=2)
                said.update(batch.broken)
                values = batch.values.float() if batch.values.is_floating_point() else batch.values
                yield Part(values.to(self.device), batch.labels.to(self.device), batch.kept)
