"""What the trainer adds up: losses of populations, and losses that are sums over samples.

A loss is prepared once and then adds its gradient at every step. On several ranks each handles its share of the rows;
gradients are summed afterwards, so every per-sample loss divides by the number of rows of all ranks. What such a loss
draws for a row follows from seed, step and the row's number, so that the gradient is the same on any number of ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rdm.data.condition import Conditions
from rdm.data.dataset import Data
from rdm.data.feed import Feed, Rows, portion
from rdm.distributed import agree, largest, total
from rdm.errors import InputError
from rdm.files.schema import expect, record
from rdm.generators.protocol import FlowGenerator
from rdm.randomness import stream
from rdm.rehearsing.bound import valued
from rdm.rehearsing.step import Does, Keeps
from rdm.scaling.sharding import is_sharded
from rdm.scaling.sums import Passes, alone
from rdm.timing.reads import usual
from rdm.timing.regions import region

Logged = Mapping[str, float | Tensor]  # numbers, or tensors that hold one, which are read with all others of a step


class Setting(NamedTuple):
    """What a loss is prepared with.

    A loss enters `passes(last=...)` for each of its backward passes through the model, so that gradients are summed
    over ranks while its last one still computes; those of a loss that does not are summed afterwards.
    """

    data: Data | None
    seed: int
    device: torch.device
    cache: Path | None
    passes: Passes = alone
    rate: float | None = None  # the optimizer's largest learning rate; None: not known

    def items(self, user: object) -> Data:
        """The data, which a loss cannot do without."""
        if self.data is None:
            raise InputError(f"{type(user).__name__} reads real items and there are none; bind rdm.train.data")
        return self.data


class Loss(ABC):
    """One term of the training loss.

    `conditions` are what it asks a generator for, as sample grids do too; `size` is the number of items that it reads
    or generates in a step, over all ranks (None: not said). One is `repeatable` where its `backward` may be called
    again for a step: what it changes beside gradients, random states and buffers is taken back by `undone_by`.
    """

    conditions: Conditions | None = None
    size: int | None = None
    repeatable: bool = False

    @abstractmethod
    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Bind to data and device, once; a resumed run skips what its checkpoint holds."""

    @abstractmethod
    def backward(self, model: nn.Module, step: int, scale: float = 1.0) -> Logged:
        """Add the gradient of this step's loss, times `scale`, to the parameters; return what to log, unscaled."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Let go of what `prepare` and `backward` opened."""

    def rehearse(self, model: nn.Module, setting: Setting, ranks: int) -> Iterator[Keeps | Does]:
        """One step of a rank without values (`rdm.planning`): says what is held, and each part that is done.

        Unprepared; `setting.data` is None where there is none here. What is held is held by the iterator meanwhile.
        """
        yield Keeps(type(self).__name__, None, "it does not say what it holds")

    def state(self) -> dict[str, Any]:
        """What changes from step to step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        expect(state, record({}), "the state of a loss in the checkpoint", "delete it to go on from the one before")


def size_of(losses: Sequence[Loss]) -> int | None:
    """Items a step: those of the loss that has the most; None where none says."""
    return max((loss.size for loss in losses if loss.size is not None), default=None)


@runtime_checkable
class Closable(Protocol):
    """What holds something that it lets go of."""

    def close(self) -> None:
        """Let go of it."""
        ...


@contextmanager
def closing(held: Sequence[Closable]) -> Iterator[None]:
    """Losses and other things that are closed when the block ends."""
    try:
        yield
    finally:
        for each in held:
            each.close()


Summed = tuple[Tensor, Logged]  # a loss summed over rows, with its graph, and other sums to log


class Piece(NamedTuple):
    """Rows of one forward and backward pass; those of an idle one are there for ranks that wait, and count nothing."""

    rows: slice
    idle: bool = False


def pieces(rows: int, chunk: int | None) -> list[Piece]:
    """A rank's rows, at most `chunk` in one piece; as many pieces on every rank that has rows."""
    if chunk is None:
        return [Piece(slice(0, rows))] if rows else []
    (count,) = largest(-(-rows // chunk))
    parts = [portion(rows, k, count) for k in range(count)] if rows else []
    return [Piece(slice(part.start, part.stop)) if part else Piece(slice(0, 1), idle=True) for part in parts]


def accumulate(
    parts: Sequence[Piece], of: Callable[[slice], Summed], factor: float, passes: Passes = alone
) -> dict[str, Any]:
    """Add the gradient of the sum over all pieces times `factor`, one at a time; returns the sums, "loss" with them."""
    sums = dict[str, Any]()
    for number, part in enumerate(parts, 1):
        with region("generator, forward"):
            loss, others = of(part.rows)
        with passes(last=number == len(parts)), region("generator, backward"):
            (loss * (0.0 if part.idle else factor)).backward()
        if not part.idle:
            for name, value in {"loss": loss.detach().double(), **others}.items():
                sums[name] = sums[name] + value if name in sums else value
    return sums


class Fed(Loss):
    """A loss of real items: `batch` of them a step over all ranks, every item once an epoch (`rdm.data.feed`).

    At most `chunk` of them go through the model at once; None for all of a rank's.
    """

    batch: int
    chunk: int | None = None
    repeatable = True

    @property
    def size(self) -> int:  # type: ignore[override]
        """The batch."""
        return self.batch

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Open the data."""
        self.setting = setting
        self._feed = Feed(setting.items(self), self.batch, setting.seed)

    def close(self) -> None:
        """End the processes that read ahead."""
        if hasattr(self, "_feed"):
            self._feed.close()

    def backward(self, model: nn.Module, step: int, scale: float = 1.0) -> Logged:
        """One batch of real items; a rank whose share is left out adds nothing.

        Raises:
            InputError: so it is for one of several ranks that share out a model's modules, and wait for it.
        """
        rows = self._feed.at(step)
        device = self.setting.device
        streams = [stream(self.setting.seed, type(self).__name__, step, k, device=device) for k in rows.numbers]
        if is_sharded(model):
            _refuse_none(rows)
        parts = pieces(len(streams), self.chunk)

        def of(part: slice) -> Summed:
            return self.summed(model, Rows(rows.items[part], rows.labels[part], rows.numbers[part]), streams[part])

        sums = accumulate(parts, of, scale / self.batch, self.setting.passes)
        return {name: total(sums.get(name, 0.0)) / self.batch for name in self.logged}

    def rehearse(self, model: nn.Module, setting: Setting, ranks: int) -> Iterator[Keeps | Does]:
        """One batch of items like the first; without data, of items like a flow's states."""
        parts = pieces(len(portion(self.batch, 0, ranks)), self.chunk)
        self.setting, rows = setting, parts[0].rows.stop
        items = _like_data(setting.data, rows) if setting.data is not None else _like_states(model, rows)
        source, numbers = stream(setting.seed, "rehearsal"), list(range(rows))
        yield Does("a batch of items")
        drawn = Rows(items, torch.zeros(rows).long(), numbers)
        accumulate(parts[:1], lambda _: self.summed(model, drawn, [source] * rows), 1 / self.batch)
        yield Does(f"{type(self).__name__}, forward and backward", len(parts))

    logged: Sequence[str] = ("loss",)

    @abstractmethod
    def summed(self, model: nn.Module, rows: Rows, streams: Sequence[torch.Generator]) -> Summed:
        """The loss summed over the rows, with its graph, and other sums over them, by what is logged.

        `streams` has a source of randomness for each row, which no other row draws from.
        """

    def labels(self, rows: Rows, classes: int) -> Tensor:
        """Labels of the rows, which must be below `classes`.

        Raises:
            InputError: another label, or none.
        """
        if not usual(((rows.labels >= 0) & (rows.labels < classes)).all()):
            for label in (each for each in rows.labels.tolist() if not 0 <= each < classes):
                held = f"class {label}" if label >= 0 else "items without a class"
                raise InputError(
                    f"{self.setting.items(self).name} holds {held}; the model has {classes} classes, from 0; "
                    "give the model as many, or other data"
                )
        return rows.labels


def _like_data(data: Data, rows: int) -> Tensor:
    """So many items of the data set's form."""
    with valued():
        shape, dtype = data.form
    return torch.zeros(rows, *shape, dtype=dtype)


def _like_states(model: nn.Module, rows: int) -> Tensor:
    """So many items of the form of a flow's states, which its `encode` keeps.

    Raises:
        InputError: it is no flow, so that the data alone say what items are.
    """
    if not isinstance(model, FlowGenerator):
        raise InputError("what items are is only known from the data, which are not here; give rdm.train.data")
    return torch.zeros(rows, *model.shape)


def _refuse_none(rows: Rows) -> None:
    """Refuse on all ranks that one has no rows."""
    words = "this rank has no item of the batch, and others wait for it to gather sharded modules; give a larger batch"
    agree(None if rows.numbers else InputError(words))
