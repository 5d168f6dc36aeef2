"""What the trainer adds up: losses of populations, and losses that are sums over samples.

A loss is prepared once and then adds its gradient at every step. On several ranks each handles its share of the rows;
gradients are summed afterwards, so every per-sample loss divides by the number of rows of all ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdm.data.condition import Condition, Conditions, described, moved
from rdm.data.dataset import Dataset
from rdm.distributed import rank, total, world_size
from rdm.errors import InputError, first_line
from rdm.files.schema import expect, record
from rdm.generators.protocol import FlowGenerator, Generator, drawn, tried
from rdm.matching.balance import Balance
from rdm.matching.memory import Memory
from rdm.matching.objective import Objective, by_member
from rdm.matching.representation import Battery
from rdm.numbers import Count, Share, Size, validated
from rdm.randomness import stream
from rdm.training.augmentation import Augmentation
from rdm.training.population import Population


class Setting(NamedTuple):
    """What a loss is prepared with."""

    data: Dataset
    seed: int
    device: torch.device
    cache: Path | None


class Loss(ABC):
    """One term of the training loss; `conditions` are what it asks a generator for, as sample grids do too."""

    conditions: Conditions | None = None

    @abstractmethod
    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Bind to data and device, once; a resumed run skips what its checkpoint holds."""

    @abstractmethod
    def backward(self, model: nn.Module, step: int) -> dict[str, float]:
        """Add the gradient of this step's loss to the parameters; return what to log."""

    def state(self) -> dict[str, Any]:
        """What changes from step to step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        expect(state, record({}), "the state of a loss in the checkpoint", "delete it to go on from the one before")


@validated
class Matching(Loss):
    """Distance of the generated population from the data under every member of a battery (`rdm.Population`).

    Args:
        objective, battery, memory, balance, normalize_gradient: see `rdm.Population`.
        conditions: what the generator is asked for (registry "conditions"); None for its own, classes uniformly.
        population: images generated a step, over all ranks.
        chunk: images in one forward pass; None for all of a rank's at once.
        warm_up: images of the initial model written to the memory before the first step.
    """

    def __init__(
        self,
        objective: Objective | Mapping[str, Objective],
        battery: Battery,
        population: Count = 1024,
        chunk: Count | None = None,
        memory: Memory | None = None,
        balance: Balance | None = None,
        normalize_gradient: bool = False,
        warm_up: Size = 0,
        conditions: Conditions | None = None,
    ):
        by_member(objective, [each.name for each in battery.members])
        self.objective, self.battery, self.population = objective, battery, population
        self.options = {"chunk": chunk, "memory": memory, "balance": balance, "normalize_gradient": normalize_gradient}
        self.warm_up, self.conditions = warm_up, conditions

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Encode the reference (or read it from the cache), bind the objective, warm the memory up."""
        self.setting = setting
        if self.population < world_size():
            raise InputError(f"a population of {self.population} leaves ranks without images; there are {world_size()}")
        data = setting.data
        self.matched = Population(
            self.objective, self.battery, data.images, condition=data.labels, cache=setting.cache, **self.options
        )
        self._pair(model, data.labels)
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

    def _pair(self, model: nn.Module, real: Condition | None) -> None:
        """Try generator, conditions and the members that see them on two items, before the first step."""
        if not isinstance(model, Generator):
            raise InputError(f"Matching trains a rdm.generators.protocol.Generator; got {type(model).__name__}")
        asked = model.conditions if self.conditions is None else self.conditions
        self.conditions = None if asked is None else asked.fitted(real)
        if self.conditions is not None:
            items, condition = tried(model, self.conditions)
            _try(self.matched.battery, items, condition)

    def _draw(self, model: nn.Module, n: int, purpose: int | str) -> tuple[Tensor, Condition | None]:
        assert isinstance(model, Generator)
        seed, device = self.setting.seed, self.setting.device
        before = sum(_rows(n, k) for k in range(rank()))
        mine = slice(before, before + _rows(n))
        return drawn(model, self.conditions, n, mine, lambda k: stream(seed, "noise", purpose, k, device=device))


@validated
class FlowMatching(Loss):
    """Mean squared error of the velocity, E |v(x_t, t) - (z - x_0)|^2, with t uniform and z of the model's noise scale.

    Source: Lipman et al. (2023), "Flow Matching for Generative Modeling", equation 23, with time reversed: t = 1 is
    noise. Cost: one forward and backward of `batch` images. With `conditions`, the model is given what these read for
    the items' own conditions, such as contexts for the numbers of captions.
    """

    def __init__(self, batch: Count = 256, conditions: Conditions | None = None):
        self.batch, self.conditions = batch, conditions

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Keep the data; the model must be a flow."""
        if not isinstance(model, FlowGenerator):
            raise InputError(f"FlowMatching trains a rdm.generators.protocol.FlowGenerator; got {type(model).__name__}")
        self.setting = setting
        if self.conditions is not None:
            tried(model, self.conditions.fitted(setting.data.labels))

    def backward(self, model: nn.Module, step: int) -> dict[str, float]:
        """One batch of real images, noised."""
        assert isinstance(model, FlowGenerator)
        source = stream(self.setting.seed, "flow", step, rank())
        images, labels = self.setting.data.draw(_rows(self.batch), source)
        x0 = images * 2 - 1
        z = model.noise_scale * torch.randn(x0.shape, generator=source).to(x0)
        t = torch.rand(len(x0), generator=source).to(x0)
        tt = t.view(-1, *[1] * (x0.ndim - 1))
        condition = labels if self.conditions is None else moved(self.conditions.read(labels), x0.device)
        error = model.velocity((1 - tt) * x0 + tt * z, t, condition) - (z - x0)
        loss = error.square().flatten(1).mean(1).sum() / self.batch
        loss.backward()
        return {"loss": total(float(loss.detach()))}


@validated
class Classification(Loss):
    """Cross-entropy of a classifier's logits, on augmented items (`rdm.training.augmentation`; None for as they are).

    Cost: one forward and backward of `batch` items.
    """

    def __init__(self, batch: Count = 128, augmentation: Augmentation | None = None, smoothing: Share = 0.05):
        self.batch, self.augmentation, self.smoothing = batch, augmentation, smoothing

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Keep the data."""
        self.setting = setting

    def backward(self, model: nn.Module, step: int) -> dict[str, float]:
        """One augmented batch of labelled items."""
        source = stream(self.setting.seed, "classification", step, rank())
        items, labels = self.setting.data.draw(_rows(self.batch), source)
        logits = model(items if self.augmentation is None else self.augmentation(items, source))
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum") / self.batch
        loss.backward()
        correct = float((logits.argmax(1) == labels).sum())
        return {"loss": total(float(loss.detach())), "accuracy": total(correct) / self.batch}


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


def _rows(n: int, place: int | None = None) -> int:
    """A rank's share of n rows, this one's by default; the first ranks take the remainder."""
    return n // world_size() + ((rank() if place is None else place) < n % world_size())
