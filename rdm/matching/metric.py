"""What a metric is: a number about generated features against real ones, with an honest 95 % interval.

The interval is that of new draws of the generated rows: the real side is held fixed, so that the truth it covers is
the mean over new generated sets *of the same size* (each docstring says where that is the population's value). For a
smooth functional D of the empirical measure P_n, with influence function g and second-order kernel h,

    D(P_n) = D + (1/n) sum_i g(x_i) + (1/n^2) sum_ij h(x_i, x_j) + ...,   Var = E[g^2]/n + S,   S = 2 E[h^2]/n^2.

The spread J of the measured influences has mean E[g^2]/n + 2 S, and a bootstrap's three S: near equality, where g
vanishes, both are far too wide. J - S is right on either end, and never less than S (test: test_intervals.py).
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.autocast import own_types
from rdm.matching.real import Gaussian, Real
from rdm.matching.statistic import checked
from rdm.numbers import Float, check_fields

Z = 1.959963984540054  # the normal law's 97.5 % quantile
E = 0.5  # relative change of weights in `reweighted`


class Metric(NamedTuple):
    """One number with its 95 % interval (NaN where there is none), the number of generated items and the seed."""

    value: float
    low: float
    high: float
    n: int
    seed: int

    def __str__(self) -> str:
        """Value and interval as every table, line and drawing gives them, to two digits of the interval's width.

        >>> print(Metric(1.0445, 0.833, 1.271, n=500, seed=0))
        1.04 [0.83, 1.27]
        """
        if math.isnan(self.low):
            return f"{self.value:.3g}"
        width, form = self.high - self.low, ".2g"
        if width > 0 and 0.1 <= max(map(abs, self[:3])) < 1e5:
            form = f".{min(3, max(0, 1 - math.floor(math.log10(width))))}f"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


class Estimate(NamedTuple):
    """A value with what its interval follows from.

    The influences are those of the rows on the value (the value moves by influence_i / n when row i's weight of 1/n
    doubles); `second` is the variance S of the second-order term.
    """

    value: float
    influence: Float[Tensor, " n"]
    second: float

    @property
    def first(self) -> float:
        """J: variance of the mean influence, second-order excess included."""
        n = len(self.influence)
        return float(self.influence.double().var(correction=1)) / n if n > 1 else math.nan

    @property
    def variance(self) -> float:
        """Variance over new draws of the rows: J - S, at least S."""
        return max(self.first - self.second, self.second)

    def root(self) -> "Estimate":
        """The square root of a squared distance D.

        Its slope is the tangent's, but where 1.96 standard deviations reach 0 that of the chord from D to their upper
        end: towards 0, where copies of the reference lead, the tangent's grows without bound.
        """
        square = max(self.value, 0.0)
        value, half = math.sqrt(square), Z * math.sqrt(self.variance)
        if square > half / 2:
            slope = 0.5 / value
        else:
            slope = 1 / (value + math.sqrt(square + half)) if half > 0 else 0.0
        return Estimate(value, self.influence * slope, self.second * slope**2)

    def scaled(self, factor: float) -> "Estimate":
        """The value in other units."""
        return Estimate(self.value * factor, self.influence * factor, self.second * factor**2)

    def metric(self, seed: int, *, rooted: bool, most: float = math.inf) -> Metric:
        """Value and interval within [0, most]; `rooted` for squared distances: symmetric about the root.

        (Whose spread is even: a squared distance that comes out low has low influences too, and an interval too short
        on the right.)
        """
        root = self.root() if rooted else self
        _, low, high, n, _ = between(root.value, root.variance, len(self.influence), seed, least=0.0)
        low, high = (low**2, high**2) if rooted else (low, high)
        return Metric(self.value, min(low, self.value), max(self.value, min(high, most)), n, seed)


def _of_rows(call: Callable[..., Metric]) -> Callable[..., Metric]:
    """The same, which takes rows in the place of a `Real` that has nothing else."""

    @functools.wraps(call)
    def taking(self: "Measure", x: Tensor, real: Any, **options: Any) -> Metric:
        if real is not None and not isinstance(real, Real):
            real = Real.of(real)
        return call(self, x, real, **options)

    return taking


class Measure(ABC):
    """A metric: a frozen dataclass of hyperparameters, called on features. Registered in `metrics`.

    Its fields are checked against their annotations (`rdm.numbers`). The same inside `torch.autocast`, `torch.no_grad`
    and `torch.inference_mode` as outside.
    """

    logits: ClassVar[bool] = False  # it is about class logits, not features
    trained: ClassVar[bool] = False  # it looks for copies of the generator's training set, `Real.train`
    best: ClassVar[float] = 0.0  # what real data strives for: 0 or 1, infinity for the most
    lowest: ClassVar[float] = -math.inf  # what it can be, where intervals end
    highest: ClassVar[float] = math.inf

    def __post_init__(self) -> None:  # noqa: D105
        check_fields(self)

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: D105
        super().__init_subclass__(**options)
        for name in {"__call__", "estimate", "streamed"} & set(vars(cls)):
            own = own_types()(vars(cls)[name])
            setattr(cls, name, _of_rows(own) if name == "__call__" else own)

    @abstractmethod
    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:
        """The metric of generated features x (n, d) against the real side, which may be rows (m, d) as well."""

    def bound(self, real: Real, *, seed: int = 0) -> Callable[[Tensor, Tensor | None], Metric]:
        """The metric of features, and of the classes asked for where these count; the real side's part is done once."""
        return lambda x, labels: self(x, real, seed=seed)

    def alarm(self, found: Metric) -> str:
        """What is wrong with the generator, in words, where the metric's interval is beyond what it may be; or ""."""
        return ""

    def streamed(self, fit: Gaussian, x: Tensor, real: Real, *, seed: int = 0) -> Metric:
        """The same from a uniform sample x of more rows, whose Gaussian fit is known; by default of the sample."""
        return self(x, real, seed=seed)


class Distance(Measure):
    """A metric with per-row influences, so that it can be divided by a floor and averaged over members."""

    squared: ClassVar[bool] = True  # of a squared distance, never below 0: its interval is symmetric about the root
    lowest: ClassVar[float] = 0.0

    @abstractmethod
    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> Estimate:
        """Value, influences and second-order variance, given the real side."""

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:
        """Value with the interval that follows from the influences."""
        return self.estimate(x, real, seed=seed).metric(seed, rooted=self.squared, most=self.highest)


def generated(x: Any, real: Real | None = None, *, least: int, user: str) -> Tensor:
    """Checked generated rows; fewer than `least` are refused, and rows of another width than the reference's."""
    if not isinstance(x, Tensor):
        raise InputError(f"{user} takes generated features as a tensor (n, d); got {type(x).__name__}; convert it")
    rows = checked(x.detach(), side="generated features")[0]
    if len(rows) < least:
        raise InputError(f"{user} needs at least {least} generated rows; got {len(rows)}")
    if real is not None and real.known and real.dimension != rows.shape[1]:
        raise InputError(
            f"{user}: features must have the reference's dimension d={real.dimension}; got d={rows.shape[1]}; "
            "encode both sides with the same representation"
        )
    return rows


def reweighted(
    value: Callable[[Tensor], float],
    n: int,
    repeats: int,
    source: torch.Generator,
    *,
    strata: Tensor | None = None,
) -> tuple[float, float]:
    """Value of a smooth functional of n weighted rows, and its variance over new draws of them.

    Rows are paired at random; one of each pair, by a coin, weighs 1 + e and the other 1 - e, then the other way about.
    Over e, half of the difference has variance J, and over e^2 the mean has S (see above). Pairs of one stratum, as far
    as they go, for draws that keep every row's stratum. `value` takes weights "n" in float64.
    """
    middle, odd, even = value(torch.ones(n, dtype=torch.float64)), [], []
    for _ in range(repeats):
        order = torch.randperm(n, generator=source)
        if strata is not None:
            order = order[strata.cpu()[order].argsort(stable=True)]
        coins = E * (2 * torch.randint(2, (n // 2,), generator=source).double() - 1)
        change = torch.zeros(n, dtype=torch.float64)
        change[order[0 : n - 1 : 2]], change[order[1::2]] = coins, -coins
        up, down = value(1 + change), value(1 - change)
        odd.append((up - down) / (2 * E))
        even.append((up + down) / (2 * E**2))
    first = float(torch.tensor(odd, dtype=torch.float64).square().mean())
    second = float(torch.tensor(even, dtype=torch.float64).var())
    return middle, max(first - second, second)


def between(
    value: float, variance: float, n: int, seed: int, *, least: float = -math.inf, most: float = math.inf
) -> Metric:
    """A metric whose interval is the value plus and minus 1.96 standard deviations, cut at what it can be."""
    half = Z * math.sqrt(max(variance, 0.0))
    return Metric(value, max(value - half, least), min(value + half, most), n, seed)


def of_share(value: float, variance: float, n: int, seed: int) -> Metric:
    """A share with Wilson's interval (1927), for as many independent rows as would vary so much; inside [0, 1]."""
    spread = value * (1 - value)
    rows = spread / variance if variance > 0 and spread > 0 else n
    middle = (value + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * math.sqrt(spread / rows + Z**2 / (4 * rows**2))
    return Metric(value, min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half)), n, seed)


def of_groups(values: Sequence[float], n: int, seed: int, *, least: float, most: float) -> Metric:
    """Mean of independent groups with Student's interval, cut at what it can be; of one group, without interval."""
    groups = torch.tensor(values, dtype=torch.float64)
    mean = float(groups.mean())
    if len(groups) < 2:
        return Metric(mean, math.nan, math.nan, n, seed)
    half = student(len(groups) - 1) * float(groups.std() / len(groups) ** 0.5)
    return Metric(mean, max(mean - half, least), min(mean + half, most), n, seed)


def student(freedom: int) -> float:
    """97.5 % quantile of Student's law: in closed form to two degrees of freedom, then by the Cornish-Fisher series.

    (Abramowitz and Stegun 26.7.5; its error is 1 % at 3, and would be 24 % at 1.)

    >>> [round(student(freedom), 3) for freedom in (1, 2, 9, 99)]
    [12.706, 4.303, 2.262, 1.984]
    """
    if freedom <= 2:
        return math.tan(0.475 * math.pi) if freedom == 1 else 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z, freedom
    terms = (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    last = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + sum(terms) + last
