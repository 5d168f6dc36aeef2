"""What this package adds to rdm; every name of rdm is taken from `rdm.api`."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rdm.api import (
    Battery,
    Count,
    Dataset,
    Generator,
    Objective,
    Positive,
    Real,
    Representation,
    Samples,
    Seed,
    Summary,
    Traits,
    batteries,
    datasets,
    generators,
    objectives,
    representations,
    stream,
)


@objectives.register("mean_gap")
@dataclass(frozen=True)
class MeanGap(Objective):
    r"""Squared distance of both sides' means.

    .. math:: |E x - E y|^2

    Source: the squared MMD of the linear kernel (Gretton et al. 2012). It sees nothing but the means.

    Shapes: features: n d; weights: n; result ().
    Units: squared feature distance.
    Cost: (n + m) d.
    Raises: nothing of its own.

    >>> import torch, rdm
    >>> rdm.distance("mean_gap", torch.ones(3, 2), torch.zeros(4, 2)).item()
    2.0
    """

    @property
    def traits(self) -> Traits:
        """A distance of the weighted measures."""
        return Traits()

    def bind(self, reference: Real) -> tuple[Samples, None]:
        """Rows about the reference's mean, so that the target is the origin."""
        return Samples(reference.mean), None

    def distance(self, summary: Summary, target: None, *, generator: Any = None) -> Tensor:
        """Squared length of the weighted mean."""
        return (summary.weight @ summary.value.double() / summary.mass).square().sum()


@representations.register("radius")
def radius() -> Representation:
    """Distance of every item from the origin.

    Shapes: n ... -> n 1. Cost: none.
    """
    return Representation("radius", _Radius())


class _Radius(nn.Module):
    def forward(self, items: Tensor) -> Tensor:
        return items.flatten(1).norm(dim=1, keepdim=True)


@batteries.register("rings")
def rings_battery() -> Battery:
    """The items themselves and their radius, none held out."""
    return Battery((representations.build("identity"), representations.build("radius")))


@generators.register("turned", examples=({"width": 8},))
class Turned(Generator):
    """One hidden layer from noise in the plane to points of the plane, without classes.

    Shapes: noise n 2 -> items n 2. Cost: 4 width multiplications an item.
    """

    def __init__(self, width: Count = 64):
        super().__init__()
        self.shape, self.classes = (2,), None
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Generate points."""
        return self.layers(noise)


@datasets.register("rings")
def rings(n: Count = 2_000, width: Positive = 0.05, seed: Seed = 0) -> Dataset:
    """Points "n 2" on rings of radius 1 and 2, each radius with a deviation of `width`, classes by ring."""
    generator = stream(seed, "rings")
    classes = torch.arange(n) % 2
    radii = 1 + classes + width * torch.randn(n, generator=generator)
    angles = 2 * math.pi * torch.rand(n, generator=generator)
    return Dataset("rings", radii[:, None] * torch.stack([angles.cos(), angles.sin()], 1), classes, classes=2)
