"""Distances of fresh samples, without memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdm.api import (
    Battery,
    Conditions,
    Count,
    Dataset,
    Generator,
    InputError,
    Monitor,
    Objective,
    Population,
    Reference,
    Setting,
    by_member,
    drawn,
    monitors,
    portion,
    rank,
    stream,
    world_size,
)

FAR = 1.5  # of fresh real items' distance: beyond what draws of real items differ by, squared distances included


@monitors.register("fresh")
class Fresh(Monitor):
    """Distance of fresh samples from the reference under every member of a battery, held-out ones as well.

    The loss's own `distance/NAME` is of the live batch and what a memory adds; a collapse that moves fills an average
    and fools it. Here the samples are of one model and its own noise alone: `fresh/NAME`, `fresh_held_out/NAME`, and
    `fresh_ratio/NAME` to the floor, the distance of as many fresh real rows, where the reference has them. A line is
    said when the ratio of a member that is trained on falls below 1 while that of a held-out one is above 1.5, or above
    1 and its distance above its first: from there on the loss asks for what real items do not have.

    Args:
        objective: as that of the loss; a mapping by name gives each member its own, held-out ones included.
        battery: members that are trained on, and those held out.
        reference: what is compared with, of all these encoders (see `rdm.Population`); None for the run's data.
        population: samples, over all ranks.
        chunk: samples in one forward pass; None for all of a rank's at once.
        conditions: what the generator is asked for; None for its own.
        every: steps between two measurements.

    Cost:
        a forward pass of the samples through generator and encoders, and one distance a member; the reference's
        summaries are held beside those of the loss.

    Raises:
        InputError: no battery member, a population below the number of ranks, or a reference that does not suit.
    """

    def __init__(
        self,
        objective: Objective | Mapping[str, Objective],
        battery: Battery,
        reference: Reference | Path | str | Mapping[str, Reference | Path | str] | None = None,
        population: Count = 1024,
        chunk: Count | None = None,
        conditions: Conditions | None = None,
        every: Count = 100,
    ):
        self._trained = [each.name for each in battery.members]
        self.battery = Battery((*battery.members, *battery.held_out))
        by_member(objective, [each.name for each in self.battery.members])
        self.objective, self.reference, self.population = objective, reference, population
        self.chunk, self.conditions, self.every = chunk, conditions, every
        self._alarmed = False

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Read or encode the reference, and measure the floors of as many rows where it has them."""
        if not isinstance(model, Generator):
            raise InputError(f"monitors.fresh draws from a generator; got {type(model).__name__}")
        if self.population < world_size():
            raise InputError(f"monitors.fresh: {self.population} samples leave some of {world_size()} ranks without")
        self.setting = setting
        if self.reference is None:
            data = setting.items(self)
            if not isinstance(data, Dataset):
                raise InputError(f"monitors.fresh cannot hold {data.name} in memory; bind monitors.fresh.reference")
            real: dict[str, Any] = {"items": data.images, "condition": data.labels}
        else:
            real = {"reference": self.reference, "device": setting.device}
        real |= {"cache": setting.cache, "shared": True, "chunk": self.chunk}
        self._matched = Population(self.objective, self.battery, **real)
        asked = model.conditions if self.conditions is None else self.conditions
        self.conditions = None if asked is None else asked.fitted(self._matched.condition)
        held = [0 if term.fresh is None else len(term.fresh) for term in self._matched.terms]
        self._floors = self._matched.floors(self.population) if min(held) >= self.population else {}

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """The distances, and their ratios to the floors."""
        assert isinstance(model, Generator)
        seed, device = self.setting.seed, self.setting.device
        mine = portion(self.population, rank(), world_size())
        rows = slice(mine.start, mine.stop)

        def source(block: int) -> torch.Generator:
            return stream(seed, "fresh", step, block, device=device)

        noise, condition = drawn(model, self.conditions, self.population, rows, source)
        self._matched.loss(model, noise, condition, generator=stream(seed, "fresh directions", step))
        assert self._matched.latest is not None
        found = dict[str, float]()
        for name, distance in self._matched.latest.distances.items():
            found[f"{'fresh' if name in self._trained else 'fresh_held_out'}/{name}"] = float(distance)
            if name in self._floors:
                found[f"fresh_ratio/{name}"] = float(distance) / self._floors[name]
        return found

    def alarm(self, first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
        """One line when the loss begins to be gamed."""
        ratios = {each.name: now.get(f"fresh_ratio/{each.name}", 1.0) for each in self.battery.members}
        held_out = [name for name in ratios if name not in self._trained]
        risen = {name for name in held_out if _grown(f"fresh_held_out/{name}", first, now)}
        below = {name: ratios[name] for name in self._trained if ratios[name] < 1}
        far = {name for name in held_out if ratios[name] > FAR}
        worse = {name: ratios[name] for name in held_out if ratios[name] > 1 and name in risen | far}
        before, self._alarmed = self._alarmed, bool(below and worse)
        if before or not self._alarmed:
            return None
        return (
            f"the loss may be gamed: samples are nearer to the reference than as many fresh real items under "
            f"{_listed(below)}, but farther under {_listed(worse)}, held out (ratios of the distances)"
        )


def _grown(key: str, first: Mapping[str, float], now: Mapping[str, float]) -> bool:
    return key in now and now[key] > first.get(key, math.inf)


def _listed(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({ratio:.2g})" for name, ratio in ratios.items())
