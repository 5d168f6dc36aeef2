"""Distances of generated populations, as a loss."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdm.api import (
    Balance,
    Battery,
    Condition,
    Conditions,
    Count,
    Dataset,
    Does,
    Generator,
    InputError,
    Keeps,
    Logged,
    Loss,
    Memory,
    NoMemory,
    NonFiniteError,
    Objective,
    Population,
    Positive,
    Reference,
    Rehearsal,
    Setting,
    Size,
    by_member,
    described,
    drawn,
    expected,
    first_line,
    losses,
    portion,
    rank,
    region,
    stream,
    tried,
    world_size,
)
from rdm.losses._pairings import warn_of_pairings


@losses.register("matching")
class Matching(Loss):
    """Distance of the generated population from the data under every member of a battery (`rdm.Population`).

    Args:
        objective, battery, memory, balance, normalize_gradient, tolerance, reference: see `rdm.Population`.
            With a reference the data set is not read.
        conditions: what the generator is asked for (registry "conditions"); None for its own, classes uniformly.
        population: images generated a step, over all ranks.
        chunk: images in one forward pass; None for all of a rank's at once.
        warm_up: images of the initial model written to the memory before the first step.
        live: images of a step that get its gradient, for all; None for each its own.
    """

    repeatable = True

    def __init__(
        self,
        objective: Objective | Mapping[str, Objective],
        battery: Battery | None = None,
        population: Count = 1024,
        chunk: Count | None = None,
        memory: Memory | None = None,
        balance: Balance | None = None,
        normalize_gradient: bool = False,
        tolerance: Positive | None = None,
        warm_up: Size = 0,
        conditions: Conditions | None = None,
        reference: Reference | Path | str | Mapping[str, Reference | Path | str] | None = None,
        live: Count | None = None,
    ):
        if battery is not None:
            by_member(objective, [each.name for each in battery.members])
        elif reference is None:
            raise InputError("losses.matching needs a battery, or a reference whose file names one; bind either")
        self.reference = reference
        self.objective, self.battery, self.population = objective, battery, population
        self.size = population
        self.options = {"chunk": chunk, "live": live, "memory": memory, "balance": balance}
        self.options |= {"normalize_gradient": normalize_gradient, "tolerance": tolerance}
        self.warm_up, self.conditions = warm_up, conditions

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Encode the reference (or read it from its file or the cache), bind the objective, warm the memory up."""
        self.setting = setting
        warn_of_pairings(self.objective, self.options["memory"], setting.rate)
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

    def backward(self, model: nn.Module, step: int, scale: float = 1.0) -> Logged:
        """One step of the population."""
        noise, condition = self._draw(model, self.population, step)
        directions = stream(self.setting.seed, "directions", step)  # equal on all ranks
        options = {"generator": directions, "scale": scale, "passes": self.setting.passes}
        taken = self.matched.backward(model, noise, condition, **options)
        logged: dict[str, float | Tensor] = {"loss": taken.loss}
        for name, value in taken.distances.items():
            logged[f"distance/{name}"] = value
            logged[f"coefficient/{name}"] = taken.coefficients[name]
        for name, report in taken.solvers.items():
            logged |= {f"solver_{key}/{name}": value for key, value in report.items()}
        for name, share in taken.shares.items():
            logged[f"gradient_share/{name}"] = share
            logged[f"dropped/{name}"] = taken.dropped[name]
        return logged

    def rehearse(self, model: nn.Module, setting: Setting, ranks: int) -> Iterator[Keeps | Does]:
        """One step of the population, the reference known by the header of its file alone."""
        if not isinstance(model, Generator):
            raise InputError(f"Matching trains a rdm.generators.protocol.Generator; got {type(model).__name__}")
        battery, sides = expected(self.battery, self.reference, None if setting.data is None else len(setting.data))
        asked = model.conditions if self.conditions is None else self.conditions
        objectives = by_member(self.objective, [each.name for each in battery.members])
        memory, chunk, live = self.options["memory"] or NoMemory(), self.options["chunk"], self.options["live"]
        given = model, asked, battery, objectives, memory, chunk, live, self.population, sides, setting.passes
        yield from Rehearsal(*given).step(ranks)

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

    @region("data and noise")
    def _draw(self, model: nn.Module, n: int, purpose: int | str) -> tuple[Tensor, Condition | None]:
        assert isinstance(model, Generator)
        seed, device = self.setting.seed, self.setting.device
        mine = portion(n, rank(), world_size())
        rows = slice(mine.start, mine.stop)
        return drawn(model, self.conditions, n, rows, lambda k: stream(seed, "noise", purpose, k, device=device))


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
