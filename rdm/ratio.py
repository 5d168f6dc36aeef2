"""Ratios of a distance to what a fresh real split scores, and their means over encoders."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.metric import Distance, Estimate, Measure, Metric, Real, Z, generated, thin
from rdm.registry import metrics

ROWS = 16_384
ZERO = 1e-9  # of a distance: rounding


class RatioEstimate(NamedTuple):
    """Distance of the generated rows and of the fresh real rows, equally many, to the same reference."""

    above: Estimate
    below: Estimate

    @property
    def value(self) -> float:
        """The ratio."""
        return self.above.value / self.below.value


class Ratio(Measure):
    r"""D(generated, reference) / D(fresh real, reference) with equally many rows above and below.

    So that a distance's bias in N is the same on either side and real data scores 1. Interval: log-normal, of the
    ratio of the means over new sets of N rows, generated and fresh, given the reference.
    """

    best: ClassVar[float] = 1.0
    name: ClassVar[str]
    of: ClassVar[str]  # the distance's name
    shared: ClassVar[tuple[str, ...]] = ()  # hyperparameters that are the distance's

    @property
    def distance(self) -> Distance:
        """What is divided."""
        return metrics.build(self.of, **{key: getattr(self, key) for key in self.shared})

    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> RatioEstimate:
        """Both distances, of min(n, fresh, 16,384) rows."""
        x = generated(x, least=4, user=self.name)
        if real.fresh is None:
            raise InputError(f"{self.name} divides by a fresh real split's distance; this reference holds none")
        n = min(len(x), len(real.fresh), ROWS)
        fresh = thin(generated(real.fresh.to(x.device), least=4, user=self.name), n, seed, "fresh")
        below = self.distance.estimate(fresh, real, seed=seed)
        above = self.distance.estimate(thin(x, n, seed, "generated"), real, seed=seed)
        nonzero(above.value, below.value, self.name)
        return RatioEstimate(above, below)

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        return mean_ratio([self.estimate(x, real, seed=seed)], seed)


def mean_ratio(members: Sequence[RatioEstimate], seed: int) -> Metric:
    """Arithmetic mean of the members' ratios; their rows are the same items, so their influences add up row by row.

    The variance of the mean influence is deflated from J to J - S as the members' own are, all together.
    """
    ratios = [member.value for member in members]
    value = sum(ratios) / len(ratios)
    variance = 0.0
    for side in (0, 1):
        shares = [m[side].scaled(r / m[side].value / len(members)) for m, r in zip(members, ratios, strict=True)]
        together = torch.stack([share.influence.cpu() for share in shares]).sum(0)
        first = Estimate(value, together, 0.0).first
        variance += first * sum(s.variance for s in shares) / max(sum(s.first for s in shares), 1e-300)
    n = len(members[0].above.influence)
    return of_ratio(value, variance / value**2 if value > 0 else 0.0, n, seed)


def quotient(above: tuple[float, float], below: tuple[float, float], n: int, seed: int) -> Metric:
    """Ratio of two independent distances, given with their variances."""
    nonzero(above[0], below[0], "a ratio to real data")
    spread = sum(variance / value**2 for value, variance in (above, below) if value > 0)
    return of_ratio(above[0] / below[0], spread, n, seed)


def nonzero(above: float, below: float, user: str) -> None:
    """Refuse to divide by a fresh split's distance that is 0 but for rounding."""
    if below <= ZERO * above or below == 0:
        raise InputError(f"{user}: the fresh real split is at distance 0 from the reference; is it disjoint?")


def of_ratio(value: float, variance: float, n: int, seed: int) -> Metric:
    """A ratio with a log-normal interval, from the variance of its logarithm."""
    spread = min(Z * math.sqrt(variance), 700.0)  # the exponential overflows at 709
    return Metric(value, value * math.exp(-spread), value * math.exp(spread), n, seed)
