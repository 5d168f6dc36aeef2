"""Spread within a condition across noise."""

import torch
from torch import Tensor, nn

from rdm.api import (
    Battery,
    Conditions,
    Count,
    Dataset,
    Generator,
    InputError,
    Monitor,
    NonFiniteError,
    Setting,
    Several,
    monitors,
    moved,
    rows_of,
    stream,
)


@monitors.register("spread")
class Spread(Monitor):
    r"""How far samples of one condition are apart across noise, in the features of every member of a battery.

    .. math:: \text{spread} = \frac{\text{mean}_{c_i = c_j, i \ne j} |f_i - f_j|}{\text{mean}_{c_i \ne c_j} |f_i - f_j|}

    `spread/NAME` is 0 where noise is ignored, and 1 where conditions are: what real items have lies between. Conditions
    and noise are the same at every measurement.

    Args:
        battery: members and held-out ones are treated alike.
        groups: different conditions.
        each: samples of each.
        conditions: what the generator is asked for; None for its own.
        every: steps between two measurements.

    Units:
        none: a quotient of distances.

    Cost:
        groups times each samples in one forward pass of generator and encoders, and their n x n distances.

    Raises:
        InputError: a generator without conditions, or with fewer than two; an encoder that is estimated on data, where
            the run holds none in memory.
    """

    def __init__(
        self,
        battery: Battery,
        groups: Several = 10,
        each: Several = 8,
        conditions: Conditions | None = None,
        every: Count = 100,
    ):
        self.battery, self.groups, self.each, self.conditions, self.every = battery, groups, each, conditions, every

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Fit the encoders that need it to the data, and choose conditions and noise."""
        if not isinstance(model, Generator):
            raise InputError(f"monitors.spread draws from a generator; got {type(model).__name__}")
        battery, data, real = self.battery, setting.data, None
        if isinstance(data, Dataset):
            battery, real = battery.fitted(data.images, data.labels), data.labels
        if unfit := [each.name for each in (*battery.members, *battery.held_out) if each.module is None]:
            raise InputError(
                f"monitors.spread fits {', '.join(unfit)} to data in memory, of which the run has none; "
                "give a battery without"
            )
        battery = battery.to(setting.device)
        self._members = (*battery.members, *battery.held_out)
        asked = model.conditions if self.conditions is None else self.conditions
        if asked is None or (asked.count is not None and asked.count < 2):
            raise InputError("monitors.spread compares conditions; the generator has none, or one; leave it out")
        asked, source = asked.fitted(real), stream(setting.seed, "spread")
        if asked.count is None:
            which = asked.draw(self.groups, source)
        else:
            which = torch.randperm(asked.count, generator=source)[: self.groups]
        groups = self.groups if asked.count is None else len(which)
        self._group = torch.arange(groups).repeat_interleave(self.each)
        self._condition = moved(asked.read(rows_of(which, self._group)), setting.device)
        self._noise = model.noise(len(self._group), source).to(setting.device)

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """One number a member."""
        items = model(self._noise, self._condition)
        return {
            f"spread/{each.name}": self._quotient(each(items, self._condition), each.name) for each in self._members
        }

    def _quotient(self, features: Tensor, name: str) -> float:
        rows = features.flatten(1).double()
        apart, group = torch.cdist(rows, rows), self._group.to(rows.device)
        same = group[:, None] == group[None]
        others = same & ~torch.eye(len(group), dtype=torch.bool, device=rows.device)
        value = float(apart[others].mean() / apart[~same].mean())
        if not value < float("inf"):
            raise NonFiniteError(f"the spread under {name} is {value}: features are not finite, or all the same")
        return value
