"""Items of a generator by number: item i follows from the seed and i, however many are drawn, by whichever ranks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.data.condition import Conditions, rows_of
from rdm.data.items import Batch
from rdm.errors import InputError
from rdm.generators.protocol import FlowGenerator, Generator, drawn, sampled
from rdm.matching.autocast import own_types
from rdm.randomness import stream

BLOCK = 64  # items whose noise is one draw
BATCH = 32  # items a forward pass


class Samples(NamedTuple):
    """Items to judge, with the classes they were asked for."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Drawing:
    """A generator's first `total` items, in blocks of 64 whose noise is a function of the seed and their number.

    Only a block is ever in memory. A block is drawn whole, and passed on in batches from its beginning, so that the
    same batch size gives the same bits, whatever the total and the number of ranks.

    Args:
        condition: class labels in place of drawn ones: item i has the one at i modulo their number.
        conditions: what it is asked for, drawn; by default its own.
        channels: what pictures of one channel are widened to.
    """

    generator: Generator
    total: int
    seed: int = 0
    condition: Sequence[int] | None = None
    batch: int = BATCH
    channels: int | None = None
    conditions: Conditions | None = None

    def __post_init__(self) -> None:  # noqa: D105
        classes = self.generator.classes
        if self.condition is not None and classes is None:
            raise InputError(f"a {type(self.generator).__name__} has no classes; leave the condition out")
        if strange := [c for c in self.condition or () if not 0 <= c < (classes or 0)]:
            raise InputError(f"condition: expected classes from 0 to {(classes or 0) - 1}; got {strange[0]}")

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.total // BLOCK)

    @own_types()
    def block(self, number: int) -> Samples:
        """A block's items in memory, those below the total; pictures are clamped to [0, 1]."""
        conditions = self.conditions or self.generator.conditions
        noise, condition = drawn(
            self.generator, conditions, BLOCK, slice(0, BLOCK), lambda k: stream(self.seed, "items", number, k)
        )
        if self.condition is not None:
            numbers = range(number * BLOCK, (number + 1) * BLOCK)
            condition = torch.tensor([self.condition[i % len(self.condition)] for i in numbers])
        kept = min(BLOCK, self.total - number * BLOCK)
        whole = slice(-(-kept // self.batch) * self.batch)  # whole batches, whose rounding is always the same
        parts = sampled(self.generator, noise[whole], rows_of(condition, whole), self.batch)
        items = torch.cat(list(parts))[:kept].cpu()
        items = items.clamp(0, 1) if items.ndim == 4 else items
        if self.channels and items.ndim == 4 and items.shape[1] == 1:
            items = items.expand(-1, self.channels, -1, -1)
        return Samples(items, None if (labels := _numbers(condition)) is None else labels[:kept])

    @property
    def shape(self) -> list[int]:
        """Of one item."""
        return list(replace(self, total=1, batch=1).block(0).images.shape[1:])

    @contextmanager
    def read(self, numbers: Sequence[int], *, workers: int = 0) -> Iterator[Iterator[Batch]]:
        """Blocks as batches of items, as `rdm.data.items.Items` gives them."""
        yield map(self._batch, numbers)

    def names(self, batch: Batch) -> list[str]:
        """Items by number."""
        return [f"item {batch.number * BLOCK + k}" for k in batch.kept]

    def _batch(self, number: int) -> Batch:
        items, labels = self.block(number)
        none = torch.zeros(len(items), dtype=torch.int64)
        classes = none - 1 if labels is None else labels
        return Batch(number, items, classes, none, none > 0, [], {"float"}, "", list(range(len(items))))


def _numbers(condition: Any) -> Tensor | None:
    """Classes, or the numbers of captions, that a condition says; None where it says none."""
    numbers = condition.get("id") if isinstance(condition, Mapping) else condition
    if not isinstance(numbers, Tensor) or numbers.ndim != 1 or numbers.is_floating_point():
        return None
    return numbers.cpu()


def classes_of(text: str | None, generator: Generator) -> list[int] | None:
    """Classes as text: "3,5", or "all" of the generator's in turn."""
    if text is None:
        return None
    if text == "all" and generator.classes:
        return list(range(generator.classes))
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"condition takes classes as '3,5', or 'all' of a generator's; got {text!r}") from None


def in_steps(generator: Generator, steps: int | None) -> Generator:
    """The generator, where given so many steps of its solver."""
    if steps is None:
        return generator
    if not isinstance(generator, FlowGenerator):
        raise InputError(f"--steps is of flow generators; got a {type(generator).__name__}; leave it out")
    generator.steps = steps
    return generator
