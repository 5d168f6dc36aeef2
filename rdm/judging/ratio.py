"""Ratios of a distance to what a fresh real split scores, and their means over encoders."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.metric import Distance, Estimate, Measure, Metric, Z, generated, reweighted
from rdm.matching.objective import Objective
from rdm.matching.real import Real, thin
from rdm.numbers import Range, Several
from rdm.randomness import stream
from rdm.registry import metrics

ROWS, FRESH = 16_384, "fresh"
ZERO = 1e-9  # of a distance: rounding
NOISE = 1e-6  # of its standard deviation, which a fresh split's distance is never far below


class RatioEstimate(NamedTuple):
    """Distance of the generated rows and of the fresh real rows, equally many, to the same reference."""

    above: Estimate
    below: Estimate

    @property
    def value(self) -> float:
        """The ratio."""
        return self.above.value / self.below.value


@dataclass(frozen=True)
class Ratio(Measure):
    r"""D(generated, reference) / D(fresh real, reference) with equally many rows above and below.

    So that a distance's bias in N is the same on either side and real data scores 1. Interval: log-normal, of the
    ratio of the means over new sets of N rows, generated and fresh, given the reference.

    `below` divides by constants instead, by encoder: a mapping, or the name of published ones. Then all rows count.
    """

    best: ClassVar[float] = 1.0
    lowest: ClassVar[float] = 0.0
    name: ClassVar[str]
    of: ClassVar[str]  # the distance's name
    shared: ClassVar[tuple[str, ...]] = ()  # hyperparameters that are the distance's
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {}  # constants in place of a fresh split's distance

    rows: Annotated[int, Range(least=4)] = ROWS
    below: str | Mapping[str, float] = FRESH

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.below, str) and self.below not in (FRESH, *self.published):
            names = ", ".join(map(repr, (FRESH, *self.published)))
            raise InputError(f"{self.name}: below must be one of {names}, or numbers by encoder; got {self.below!r}")
        if not isinstance(self.below, str) and not all(0 < number < math.inf for number in self.below.values()):
            raise InputError(f"{self.name}: below must be positive numbers by encoder; got {dict(self.below)}")

    @property
    def distance(self) -> Distance:
        """What is divided."""
        return metrics.build(self.of, **{key: getattr(self, key) for key in self.shared})

    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> RatioEstimate:
        """Both distances, of at most `rows` rows and as many as the fresh split has."""
        x = generated(x, real, least=4, user=self.name)
        if self.below != FRESH:
            above = self.distance.estimate(x, real, seed=seed)
            return RatioEstimate(above, Estimate(self._constant(real), torch.zeros_like(above.influence), 0.0))
        if real.fresh is None:
            raise InputError(f"{self.name} divides by a fresh real split's distance; this reference holds none")
        n = min(len(x), len(real.fresh), self.rows)
        fresh = thin(generated(real.fresh.to(x.device), real, least=4, user=self.name), n, seed, "fresh")
        below = self.distance.estimate(fresh, real, seed=seed)
        above = self.distance.estimate(thin(x, n, seed, "generated"), real, seed=seed)
        nonzero(above.value, below.value, below.variance, self.name)
        return RatioEstimate(above, below)

    def _constant(self, real: Real) -> float:
        """What this encoder's distance is divided by."""
        known = self.published[self.below] if isinstance(self.below, str) else self.below
        member = str(real.origin.get("representation"))
        if member not in known:
            raise InputError(f"{self.name}: below has no number for {member!r}; it has {', '.join(known)}")
        return float(known[member])

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        return mean_ratio([self.estimate(x, real, seed=seed)], seed)


@dataclass(frozen=True)
class Divided(Measure):
    """An objective's distance to the reference over that of the fresh real split, of equally many rows.

    Interval: log-normal, of new draws of both sets, of the same classes where they are given (`bound`), by reweighting.
    """

    best: ClassVar[float] = 1.0
    lowest: ClassVar[float] = 0.0
    objective: Objective
    resamples: Several = 40

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        return self.bound(real, seed=seed)(x, None)

    def bound(self, real: Real, *, seed: int = 0) -> Callable[[Tensor, Tensor | None], Metric]:
        """The ratio of rows; of rows with classes those of the fresh split, row by row."""
        user = type(self.objective).__name__
        if real.fresh is None:
            raise InputError(f"{user} is divided by a fresh real split's distance; this reference holds none")
        statistic, target = self.objective.bind(real)
        fresh, known = real.fresh, dict[tuple[int, bool], tuple[float, float]]()

        def distance(rows: Tensor, strata: Tensor | None) -> tuple[float, float]:
            def value(weights: Tensor) -> float:
                return float(self.objective.distance(statistic.measure(rows, weights.to(rows.device)), target))

            with torch.no_grad():
                return reweighted(value, len(rows), self.resamples, stream(seed, "interval"), strata=strata)

        def ratio(x: Tensor, labels: Tensor | None) -> Metric:
            x = generated(x, real, least=2, user=user)
            n, key = min(len(x), len(fresh)), (len(x), labels is not None)
            if key not in known:
                known[key] = distance(thin(fresh, n, seed, "fresh").to(x.device), labels)
            above = known[key] if x is fresh else distance(thin(x, n, seed, "generated"), labels)
            return quotient(above, known[key], n, seed)

        return ratio


def mean_ratio(members: Sequence[RatioEstimate], seed: int) -> Metric:
    """Arithmetic mean of the members' ratios; their rows are the same items, so their influences add up row by row.

    The variance of the mean influence is deflated from J to J - S as the members' own are, all together.
    """
    ratios = [member.value for member in members]
    value = sum(ratios) / len(ratios)
    units = [1 / member.below.value / len(members) for member in members]
    above = _together([m.above.scaled(unit) for m, unit in zip(members, units, strict=True)])
    below = _together([m.below.scaled(unit * r) for m, unit, r in zip(members, units, ratios, strict=True)])
    return of_ratio(value, above, below, len(members[0].above.influence), seed)


def _together(parts: Sequence[Estimate]) -> float:
    """Variance of a sum whose parts have influences of the same rows; where these vanish the parts may be one."""
    first = Estimate(0.0, torch.stack([part.influence.cpu() for part in parts]).sum(0), 0.0).first
    apart = sum(part.first for part in parts)
    return (first / apart if apart > 0 else len(parts)) * sum(part.variance for part in parts)


def quotient(above: tuple[float, float], below: tuple[float, float], n: int, seed: int) -> Metric:
    """Ratio of two independent distances, given with their variances."""
    nonzero(above[0], *below, "a ratio to real data")
    value = above[0] / below[0]
    return of_ratio(value, above[1] / below[0] ** 2, below[1] * (value / below[0]) ** 2, n, seed)


def nonzero(above: float, below: float, variance: float, user: str) -> None:
    """Refuse to divide by a fresh split's distance, of such a variance, that is 0 but for rounding."""
    if below <= max(ZERO * above, NOISE * math.sqrt(variance)):
        raise InputError(f"{user}: the fresh real split is at distance 0 from the reference; is it disjoint?")


def of_ratio(value: float, above: float, below: float, n: int, seed: int) -> Metric:
    """A ratio with a log-normal interval, from what the distances above and below the line add to its variance.

    Where 1.96 standard deviations of the distance above reach 0 its logarithm knows no bound; the interval goes from 0
    to the plain upper end then, widened by what is below the line.
    """
    upper, lower = Z * math.sqrt(above), Z * math.sqrt(below)
    if value <= 0:
        return Metric(value, value, value + upper, n, seed)
    if value > upper:
        spread = min(math.hypot(upper, lower) / value, 700.0)  # the exponential overflows at 709
        return Metric(value, value * math.exp(-spread), value * math.exp(spread), n, seed)
    spread = min(math.hypot(math.log1p(upper / value), lower / value), 700.0)
    return Metric(value, 0.0, max(value * math.exp(spread), value + upper), n, seed)
