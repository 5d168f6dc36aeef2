"""What the trainer adds up: losses of populations, and losses that are sums over samples.

A loss is prepared once and then adds its gradient at every step. On several ranks each handles its share of the rows;
gradients are summed afterwards, so every per-sample loss divides by the number of rows of all ranks. What such a loss
draws for a row follows from seed, step and the row's number, so that the gradient is the same on any number of ranks.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdm.data.condition import Condition, Conditions, described, moved
from rdm.data.dataset import Data, Dataset
from rdm.data.feed import Feed, Rows, portion
from rdm.distributed import rank, total, world_size
from rdm.errors import InputError, NonFiniteError, first_line
from rdm.files.schema import expect, record
from rdm.generators.protocol import FlowGenerator, Generator, drawn, tried
from rdm.matching.balance import Balance
from rdm.matching.memory import Memory
from rdm.matching.objective import Objective, by_member
from rdm.matching.representation import Battery
from rdm.numbers import Count, Share, Size, validated
from rdm.randomness import stream
from rdm.references.file import Reference
from rdm.training.augmentation import Augmentation
from rdm.training.population import Population


class Setting(NamedTuple):
    """What a loss is prepared with."""

    data: Data | None
    seed: int
    device: torch.device
    cache: Path | None

    def items(self, user: object) -> Data:
        """The data, which a loss cannot do without."""
        if self.data is None:
            raise InputError(f"{type(user).__name__} reads real items and there are none; bind rdm.train.data")
        return self.data


class Loss(ABC):
    """One term of the training loss; `conditions` are what it asks a generator for, as sample grids do too."""

    conditions: Conditions | None = None

    @abstractmethod
    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Bind to data and device, once; a resumed run skips what its checkpoint holds."""

    @abstractmethod
    def backward(self, model: nn.Module, step: int) -> dict[str, float]:
        """Add the gradient of this step's loss to the parameters; return what to log."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Let go of what `prepare` and `backward` opened."""

    def state(self) -> dict[str, Any]:
        """What changes from step to step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        expect(state, record({}), "the state of a loss in the checkpoint", "delete it to go on from the one before")


@contextmanager
def closing(losses: Sequence[Loss]) -> Iterator[None]:
    """Losses that are closed when the block ends."""
    try:
        yield
    finally:
        for loss in losses:
            loss.close()


@validated
class Matching(Loss):
    """Distance of the generated population from the data under every member of a battery (`rdm.Population`).

    Args:
        objective, battery, memory, balance, normalize_gradient, reference: see `rdm.Population`. With a reference the
            data set is not read.
        conditions: what the generator is asked for (registry "conditions"); None for its own, classes uniformly.
        population: images generated a step, over all ranks.
        chunk: images in one forward pass; None for all of a rank's at once.
        warm_up: images of the initial model written to the memory before the first step.
    """

    def __init__(
        self,
        objective: Objective | Mapping[str, Objective],
        battery: Battery | None = None,
        population: Count = 1024,
        chunk: Count | None = None,
        memory: Memory | None = None,
        balance: Balance | None = None,
        normalize_gradient: bool = False,
        warm_up: Size = 0,
        conditions: Conditions | None = None,
        reference: Reference | Path | str | Mapping[str, Reference | Path | str] | None = None,
    ):
        if battery is not None:
            by_member(objective, [each.name for each in battery.members])
        elif reference is None:
            raise InputError("losses.matching needs a battery, or a reference whose file names one; bind either")
        self.reference = reference
        self.objective, self.battery, self.population = objective, battery, population
        self.options = {"chunk": chunk, "memory": memory, "balance": balance, "normalize_gradient": normalize_gradient}
        self.warm_up, self.conditions = warm_up, conditions

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Encode the reference (or read it from its file or the cache), bind the objective, warm the memory up."""
        self.setting = setting
        if self.population < world_size():
            raise InputError(f"a population of {self.population} leaves ranks without images; there are {world_size()}")
        if self.reference is None:
            data = setting.items(self)
            if not isinstance(data, Dataset):
                raise InputError(
                    f"Matching holds its items in memory; got {data.name}, which is read while it is used; "
                    "measure it by rdm reference and bind losses.matching.reference"
                )
            real = {"items": data.images, "condition": data.labels}
        else:
            real = {"reference": self.reference, "device": setting.device}
        real |= {"cache": setting.cache, "shared": True}  # a run's ranks prepare together
        self.matched = Population(self.objective, self.battery, **real, **self.options)
        self._pair(model, self.matched.condition)
        if self.warm_up and not resumed:
            self.matched.warm_up(model, *self._draw(model, self.warm_up, "warm up"))

    def backward(self, model: nn.Module, step: int) -> dict[str, float]:
        """One step of the population."""
        noise, condition = self._draw(model, self.population, step)
        directions = stream(self.setting.seed, "directions", step)  # equal on all ranks
        taken = self.matched.backward(model, noise, condition, generator=directions)
        logged = {"loss": float(taken.loss)}
        for name, value in taken.distances.items():
            logged[f"distance/{name}"] = float(value)
            logged[f"coefficient/{name}"] = taken.coefficients[name]
        for name, share in taken.shares.items():
            logged[f"gradient_share/{name}"] = share
            logged[f"dropped/{name}"] = taken.dropped[name]
        return logged

    def state(self) -> dict[str, Any]:
        """Memories and balance."""
        return self.matched.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Memories and balance."""
        self.matched.restore(state)

    def _try_out(self, model: nn.Module) -> None:
        """Items of the model against the reference; what is not finite the first step says."""
        drawn, training = self._draw(model, world_size(), "try out"), model.training
        with contextlib.suppress(NonFiniteError):
            self.matched.try_out(model.eval(), *drawn)
        model.train(training)

    def _pair(self, model: nn.Module, real: Condition | None) -> None:
        """Try generator, conditions and the members that see them on two items, before the first step."""
        if not isinstance(model, Generator):
            raise InputError(f"Matching trains a rdm.generators.protocol.Generator; got {type(model).__name__}")
        asked = model.conditions if self.conditions is None else self.conditions
        self.conditions = None if asked is None else asked.fitted(real)
        if self.conditions is not None:
            items, condition = tried(model, self.conditions)
            _try(self.matched.battery, items, condition)
        if self.reference is not None:
            self._try_out(model)

    def _draw(self, model: nn.Module, n: int, purpose: int | str) -> tuple[Tensor, Condition | None]:
        assert isinstance(model, Generator)
        seed, device = self.setting.seed, self.setting.device
        mine = portion(n, rank(), world_size())
        rows = slice(mine.start, mine.stop)
        return drawn(model, self.conditions, n, rows, lambda k: stream(seed, "noise", purpose, k, device=device))


class Fed(Loss):
    """A loss of real items: `batch` of them a step over all ranks, every item once an epoch (`rdm.data.feed`)."""

    batch: int

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Open the data."""
        self.setting = setting
        self._feed = Feed(setting.items(self), self.batch, setting.seed)

    def close(self) -> None:
        """End the processes that read ahead."""
        if hasattr(self, "_feed"):
            self._feed.close()

    def backward(self, model: nn.Module, step: int) -> dict[str, float]:
        """One batch of real items; a rank whose share is left out adds nothing."""
        rows = self._feed.at(step)
        device = self.setting.device
        streams = [stream(self.setting.seed, type(self).__name__, step, k, device=device) for k in rows.numbers]
        sums = self.add(model, rows, streams) if streams else {}
        return {name: total(sums.get(name, 0.0)) / self.batch for name in self.logged}

    logged: Sequence[str] = ("loss",)

    @abstractmethod
    def add(self, model: nn.Module, rows: Rows, streams: Sequence[torch.Generator]) -> dict[str, float]:
        """Add the gradient of the rows' sum over `batch`; return sums over the rows, by what is logged.

        `streams` has a source of randomness for each row, which no other row draws from.
        """

    def labels(self, rows: Rows, classes: int) -> Tensor:
        """Labels of the rows, which must be below `classes`.

        Raises:
            InputError: another label, or none.
        """
        for label in (int(rows.labels.min()), int(rows.labels.max())):
            if not 0 <= label < classes:
                held = f"class {label}" if label >= 0 else "items without a class"
                raise InputError(
                    f"{self.setting.items(self).name} holds {held}; the model has {classes} classes, from 0; "
                    "give the model as many, or other data"
                )
        return rows.labels


@validated
class FlowMatching(Fed):
    """Mean squared error of the velocity, E |v(x_t, t) - (z - x_0)|^2, with t uniform and z of the model's noise scale.

    Source: Lipman et al. (2023), "Flow Matching for Generative Modeling", equation 23, with time reversed: t = 1 is
    noise. Cost: one forward and backward of `batch` images. With `conditions`, the model is given what these read for
    the items' own conditions, such as contexts for the numbers of captions.
    """

    def __init__(self, batch: Count = 256, conditions: Conditions | None = None):
        self.batch, self.conditions = batch, conditions

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Open the data; the model must be a flow."""
        if not isinstance(model, FlowGenerator):
            raise InputError(f"FlowMatching trains a rdm.generators.protocol.FlowGenerator; got {type(model).__name__}")
        super().prepare(model, setting, resumed=resumed)
        if self.conditions is not None:
            tried(model, self.conditions.fitted(setting.items(self).labels))

    def add(self, model: nn.Module, rows: Rows, streams: Sequence[torch.Generator]) -> dict[str, float]:
        """Real images, noised."""
        assert isinstance(model, FlowGenerator)
        x0 = model.encode(rows.items)
        z, t = torch.empty_like(x0), torch.empty(len(x0)).to(x0)
        for k, source in enumerate(streams):
            z[k].normal_(0, model.noise_scale, generator=source)
            t[k].uniform_(generator=source)
        tt = t.view(-1, *[1] * (x0.ndim - 1))
        error = model.velocity((1 - tt) * x0 + tt * z, t, self._condition(model, rows)) - (z - x0)
        loss = error.square().flatten(1).mean(1).sum()
        (loss / self.batch).backward()
        return {"loss": float(loss.detach())}

    def _condition(self, model: FlowGenerator, rows: Rows) -> Any:
        """What the model is given for the rows' labels."""
        if self.conditions is None:
            return None if model.classes is None else self.labels(rows, model.classes)
        count = self.conditions.count
        labels = rows.labels if count is None else self.labels(rows, count)
        return moved(self.conditions.read(labels), rows.items.device)


@validated
class Classification(Fed):
    """Cross-entropy of a classifier's logits, on augmented items (`rdm.training.augmentation`; None for as they are).

    Cost: one forward and backward of `batch` items.
    """

    logged = "loss", "accuracy"

    def __init__(self, batch: Count = 128, augmentation: Augmentation | None = None, smoothing: Share = 0.05):
        self.batch, self.augmentation, self.smoothing = batch, augmentation, smoothing

    def add(self, model: nn.Module, rows: Rows, streams: Sequence[torch.Generator]) -> dict[str, float]:
        """Labelled items, each augmented by itself."""
        items = rows.items
        if self.augmentation is not None:
            items = torch.stack([self.augmentation(x, source) for x, source in zip(items, streams, strict=True)])
        logits = model(items)
        labels = self.labels(rows, logits.shape[1])
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum")
        (loss / self.batch).backward()
        return {"loss": float(loss.detach()), "accuracy": float((logits.argmax(1) == labels).sum())}


def _try(battery: Battery, items: Tensor, condition: Condition | None) -> None:
    """Encode items with every member that sees conditions, to refuse those that it cannot take."""
    for member in battery.members:
        try:
            with torch.no_grad():
                _ = member(items, condition) if member.conditional else None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(
                f"representation {member.name!r} cannot take the generator's conditions ({described(condition)}): "
                f"{first_line(error)}"
            ) from error
