"""Kernel distances: MMD, energy, CMMD and KID, with exact influences and second-order variance."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from objectives._kernels import Polynomial
from rdm.api import (
    Count,
    Distance,
    Estimate,
    InputError,
    Measure,
    Metric,
    Objective,
    Positive,
    Range,
    Real,
    between,
    generated,
    metrics,
    objectives,
    thin,
)

ROWS = 16_384  # a side, at most: the cost is quadratic
TILE = 1024
PUBLISHED = 1000  # rows of a subset of KID
CUBIC = Polynomial()


class _KernelDistance(Distance):
    """A squared discrepancy of an objective whose target is a kernel over the reference's rows."""

    user: ClassVar[str]
    least: ClassVar[int] = 2

    def objective(self, real: Real) -> Objective:
        """The objective with its hyperparameters."""
        raise NotImplementedError

    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> Estimate:  # noqa: D102
        x = thin(generated(x, real, least=self.least, user=self.user), ROWS, seed, "generated")
        rows = thin(real.required_rows(self.user), ROWS, seed, "reference").to(x.device)
        objective = self.objective(real)
        statistic, target = objective.bind(Real.of(rows))
        summary = statistic.measure(x, torch.ones(len(x), dtype=torch.float64, device=x.device))
        value = float(objective.distance(summary, target))
        sums = _kernel_sums(target.kernel, summary.value.double() if target.kernel.exact else summary.value, target)
        return Estimate(value, 2 * (sums.within - sums.across), 2 * sums.square / len(x) ** 2)


class _Sums(NamedTuple):
    """Row means of the kernel within the generated rows and across to the reference; E[h^2] of the centred kernel."""

    within: Tensor
    across: Tensor
    square: float


def _kernel_sums(kernel, x: Tensor, target) -> _Sums:  # noqa: ANN001 (the objectives' own types)
    n, y, b = len(x), target.rows.to(x.dtype), target.weights
    within, across = (torch.zeros(n, dtype=torch.float64, device=x.device) for _ in range(2))
    squares = 0.0
    for start in range(0, n, TILE):
        i = slice(start, start + TILE)
        for other in range(0, len(y), TILE):
            j = slice(other, other + TILE)
            across[i] += kernel.tile(x[i], y[j], same=False).double() @ b[j]
        for other in range(start, n, TILE):
            j = slice(other, other + TILE)
            value = kernel.tile(x[i], x[j], same=start == other).double()
            if start == other:
                value.fill_diagonal_(0)
            within[i] += value.sum(1)
            squares += float(value.square().sum()) * (1 if start == other else 2)
            if start != other:
                within[j] += value.sum(0)
    within /= n - 1
    pairs = squares / (n * (n - 1))
    centred = pairs - 2 * float(within.square().mean()) + float(within.mean()) ** 2  # E of (k - r_i - r_j + r)^2
    return _Sums(within, across, max(centred, 0.0))


@metrics.register("mmd")
@dataclass(frozen=True)
class MaximumMeanDiscrepancy(_KernelDistance):
    """Squared MMD of a Gaussian kernel at the reference's median distance, biased (never below 0).

    Source: Gretton et al. (2012), eq. 5, as objective `mmd`; at most 16,384 rows a side. Biased upwards by
    (1 - E k)(1/n + 1/m). Interval: of the mean over new sets of n rows, given the reference's rows.

    Shapes: features n d. Units: none, at most 2. Cost: n (n + m) d.
    """

    user: ClassVar[str] = "mmd"
    highest: ClassVar[float] = 2.0
    bandwidth: Positive | None = None

    def objective(self, real: Real) -> Objective:  # noqa: D102
        return objectives.build("mmd", bandwidth=self.bandwidth or real.bandwidth or "median")


@metrics.register("energy")
@dataclass(frozen=True)
class EnergyDistance(_KernelDistance):
    """Energy distance, biased (never below 0).

    Source: Szekely and Rizzo (2013), eq. 2.4, as objective `energy`; at most 16,384 rows a side. Biased upwards by
    E|x - x'|/n + E|y - y'|/m. Interval: of the mean over new sets of n rows, given the reference's rows.

    Shapes: features n d. Units: feature distance. Cost: n (n + m) d.
    """

    user: ClassVar[str] = "energy"

    def objective(self, real: Real) -> Objective:  # noqa: D102
        return objectives.build("energy")


@metrics.register("cmmd")
@dataclass(frozen=True)
class CMMD(_KernelDistance):
    """CMMD's estimator: 1000 times the biased squared MMD of a Gaussian kernel of bandwidth 10, rows of length 1.

    Source: Jayasumana et al. (2024), section 4 and its published code, which is of CLIP ViT-L/14-336 embeddings and
    scales rows to length 1, as this does; as objective `cmmd`; at most 16,384 rows a side. Interval: of the mean over
    new sets of n rows, given the reference's rows.

    Shapes: features n d. Units: thousandths. Cost: n (n + m) d.
    """

    user: ClassVar[str] = "cmmd"
    highest: ClassVar[float] = 2000 * -math.expm1(-4 / 200)  # of rows of length 1, at most 2 apart

    def objective(self, real: Real) -> Objective:  # noqa: D102
        return objectives.build("cmmd")

    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> Estimate:  # noqa: D102
        x, rows = generated(x, real, least=self.least, user=self.user), real.required_rows(self.user)
        x, rows = (torch.nn.functional.normalize(side, dim=1) for side in (x, rows))
        found = super().estimate(x, Real(rows), seed=seed)
        return Estimate(found.value, found.influence * 1000, found.second * 1e6)


class Subsets(NamedTuple):
    """KID as it is published: one value a random subset."""

    values: Tensor
    full: Estimate  # of all rows, which the mean over subsets estimates


def kid_subsets(x: Tensor, y: Tensor, *, subsets: int, size: int, seed: int, kernel: Polynomial = CUBIC) -> Tensor:
    """Unbiased squared MMD of the kernel on random subsets of both sides, torch-fidelity's draws for a seed."""
    source = np.random.RandomState(seed)
    drawn = [[source.choice(len(side), size, replace=False) for side in (x, y)] for _ in range(subsets)]
    a, b = (torch.from_numpy(np.stack(rows)) for rows in zip(*drawn, strict=True))
    x, y = x.double(), y.double()
    whole = len(x) ** 2 + len(x) * len(y) + len(y) ** 2
    if whole <= 3 * subsets * size**2:  # every pair once is cheaper than every subset's pairs
        sums = _subset_sums(x, y, a, b, kernel)
    else:
        every = torch.arange(size)[None]
        pairs = zip(a.to(x.device), b.to(x.device), strict=True)
        sums = torch.cat([_subset_sums(x[i], y[j], every, every, kernel) for i, j in pairs], 1)
    within, across = sums[0] + sums[1], sums[2]
    return (within / (size * (size - 1)) - 2 * across / size**2).cpu()


def _subset_sums(x: Tensor, y: Tensor, a: Tensor, b: Tensor, kernel: Polynomial) -> Tensor:
    """Sums of the kernel over the pairs i != j within x[a], within y[b], and across, a column a subset."""
    masks = [
        torch.zeros(len(rows), len(side), dtype=x.dtype).scatter_(1, rows, 1.0).to(x.device)
        for side, rows in ((x, a), (y, b))
    ]
    sums = torch.zeros(3, len(a), dtype=x.dtype, device=x.device)
    for k, (left, right) in enumerate(((0, 0), (1, 1), (0, 1))):
        p, q = ((x, y)[side] for side in (left, right))
        for start in range(0, len(p), TILE):
            rows = slice(start, start + TILE)
            values = kernel.values(p[rows], q)
            if k < 2:
                values[:, rows].fill_diagonal_(0)
            sums[k] += ((masks[left][:, rows] @ values) * masks[right]).sum(1)
    return sums


@dataclass(frozen=True)
class _OfSubsets(Measure):
    user: ClassVar[str]

    subsets: Count = 100
    size: Annotated[int, Range(least=2)] | None = None
    degree: Count = 3
    gamma: Positive | None = None
    coef: Positive = 1.0

    def values(self, x: Tensor, real: Real, seed: int, *, size: int) -> Tensor:
        """One squared MMD a subset."""
        x, y = generated(x, real, least=size, user=self.user), real.required_rows(self.user).to(x.device)
        if len(y) < size:
            raise InputError(f"{self.user} needs at least {size} reference rows, a subset; got {len(y)}; give a size")
        kernel = Polynomial(self.degree, self.gamma, self.coef)
        return kid_subsets(x, y, subsets=self.subsets, size=size, seed=seed, kernel=kernel)


@metrics.register("kid")
@dataclass(frozen=True)
class KernelInceptionDistance(_OfSubsets):
    """Kernel distance (KID on Inception features): mean over random subsets of the unbiased cubic-kernel squared MMD.

    Source: Binkowski et al. (2018), section 4, with its 100 subsets of 1000 rows; not times 1000. The kernel is
    (gamma x.y + coef)^degree, by default (x.y / d + 1)^3. Where either side has fewer rows and no `size` is given, a
    subset is as large as the smaller side: the estimate is unbiased at any size, so the same number is estimated. Below
    0 for half of the samples of one law. Interval: of the population's value given the reference's rows, from the
    variance of the estimator on all rows (16,384 a side at most) and of the choice of subsets; the published spread
    over subsets, `kid_spread`, is no interval. One subset of some of the rows has none: the spread of the choice is
    unknown.

    Shapes: features n d. Units: power 2 degree of features. Cost: subsets size^2 d + n (n + m) d in float64.

    Raises:
        InputError: fewer rows on either side than the `size` that was asked for.
    """

    user: ClassVar[str] = "kid"

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        rows = len(x), len(real.required_rows("kid"))
        size = self.size or min(PUBLISHED, *rows)
        values = self.values(x, real, seed, size=size)
        mean, every = float(values.mean()), size >= max(rows)
        if self.subsets < 2 and not every:
            return Metric(mean, math.nan, math.nan, len(x), seed)
        chosen = 0.0 if every else float(values.var()) / self.subsets
        return between(mean, _Whole(self).estimate(x, real, seed=seed).variance + chosen, len(x), seed)


@metrics.register("kid_spread")
@dataclass(frozen=True)
class KernelInceptionSpread(_OfSubsets):
    """Standard deviation of KID over its random subsets, as published beside the mean.

    Source: Binkowski et al. (2018). A property of the subsets' size (1000 rows unless `size` is given), not the error
    of the mean. Interval: of the spread over all subsets of these rows (normal law of the subsets' values).

    Shapes: features n d. Units: as `kid`. Cost: subsets size^2 d in float64.

    Raises:
        InputError: fewer rows than a subset has, on either side.
    """

    user: ClassVar[str] = "kid_spread"
    best: ClassVar[float] = float("nan")
    lowest: ClassVar[float] = 0.0
    subsets: Annotated[int, Range(least=2)] = 100

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        spread = float(self.values(x, real, seed, size=self.size or PUBLISHED).std(correction=0))
        return between(spread, spread**2 / (2 * self.subsets), len(x), seed, least=self.lowest)


@dataclass(frozen=True)
class _Whole(_KernelDistance):
    user: ClassVar[str] = "kid"
    of: KernelInceptionDistance

    def objective(self, real: Real) -> Objective:
        return objectives.build("kid", degree=self.of.degree, gamma=self.of.gamma, coef=self.of.coef)
