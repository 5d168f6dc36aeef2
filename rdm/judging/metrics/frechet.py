"""Fréchet distance of features (FID where they are Inception's), and its limit for infinitely many rows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives._linalg import above_rounding, graded_factor
from objectives.frechet import Frechet, GaussianTarget
from rdm.api import (
    Count,
    Distance,
    Estimate,
    Gaussian,
    InputError,
    Measure,
    Metric,
    Moments,
    Real,
    Several,
    Sum,
    Z,
    between,
    generated,
    metrics,
    objectives,
    stream,
)

PAIRED = 192  # rows whose pairs estimate E[h^2]
LEVELS = 1, 2, 3, 4  # blocks that a partition has


@metrics.register("fd")
@dataclass(frozen=True)
class FrechetDistance(Distance):
    r"""Squared Fréchet distance of the Gaussian fits, unbiased covariances.

    Source: Heusel et al. (2017), eq. 6 (FID, on Inception features); as objective `frechet`. Against the fit of the
    whole reference where there is one. Biased upwards by O(1/n): compare equal n only, or take `fd_infinity`.

    Interval: of the mean over new sets of n rows (this bias included), by influences
    g(x) = |z|^2 + 2 z.(mu_g - mu_r) - z^T T z with z = x - mu_g and T the Gaussian transport map, and by the Hessian
    of the Bures distance for the second order.

    Shapes: features n d. Units: squared feature distance. Cost: n d^2 + d^3 in float64.

    Raises:
        InputError: fewer than 2 rows.

    >>> import torch
    >>> from rdm.api import Real
    >>> x = torch.tensor([[0.0], [2.0]])
    >>> FrechetDistance()(x + 3, Real(x)).value
    9.0
    """

    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> Estimate:  # noqa: D102
        x = generated(x, real, least=2, user="fd")
        return _estimate(x, _target(real.fit(), x.device), seed)

    def streamed(self, fit: Gaussian, x: Tensor, real: Real, *, seed: int = 0) -> Metric:
        """Value of the whole fit; the sample's variance, at the fit's number of rows."""
        sample = self.estimate(x, real, seed=seed)
        target, share = _target(real.fit(), x.device), len(x) / fit.n
        gap = fit.mean - target.mean
        value = torch.cat([gap[None], fit.covariance * (1 - 1 / fit.n) + gap[:, None] * gap])
        whole = Sum(value * fit.n, torch.tensor([fit.n, fit.n], dtype=torch.float64))
        distance = float(_objective().distance(whole, _about_own_mean(target)))
        found = Estimate(distance, sample.influence * share**0.5, sample.second * share**2).metric(seed, rooted=True)
        return found._replace(n=fit.n)


@metrics.register("fd_infinity")
@dataclass(frozen=True)
class FrechetAtInfinity(Measure):
    r"""Fréchet distance extrapolated to infinitely many rows.

    A line in 1/N is fitted through the mean distance of disjoint blocks of N = n/k rows, k = 1, 2, 3, 4, and read at
    1/N = 0; mean over `partitions` random partitions. The reference's own bias is taken off in the same way, from
    its sampled rows, scaled to the number of rows behind its fit. Blocks are disjoint so that the first-order
    terms of a level average to those of all rows, which leaves the fit with second-order noise only.

    Source: Chong and Forsyth (2020), section 4. `least` gives their own line, of fewer rows too: through `points`
    random subsets, which overlap, of sizes evenly from `least` to n, each point weighing alike, against the reference
    as it is (5,000 and 15 there; FAD-infinity of Gui et al. (2024) has 500 and 25). Of fewer than about 2 d rows the
    distance is no line in 1/N, and this is biased.

    Interval: of the population's distance, over new draws of both sides (of the generated one, given the reference's
    fit, where a file holds moments only: then its bias stays). The line holds while blocks have more than 2 d rows.
    With `least`, of the mean over new generated sets given the reference: its bias and the line's stay.

    Shapes: features n d. Units: squared feature distance. Cost: 9 partitions d^3 + 4 partitions n d^2, a side, in
    float64; with `least`, points (d^3 + n d^2 / 2).

    Raises:
        InputError: fewer than 8 d rows, on either side; with `least`, fewer than twice as many generated ones.
    """

    partitions: Count = 3
    least: Several | None = None
    points: Several = 15

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        if self.least is not None:
            x = generated(x, real, least=2 * self.least, user=f"fd_infinity(least={self.least})")
            return self._published(x, _target(real.fit(), x.device), self.least, seed)
        x = generated(x, real, least=8 * x.shape[-1], user="fd_infinity without least (8 rows a dimension)")
        fit = real.fit()
        value, noise = self._intercept(x, _target(fit, x.device), seed)
        spread = _estimate(x, _target(fit, x.device), seed)
        variance = spread.first
        second = spread.second
        if real.rows is not None:
            rows = real.required_rows("fd_infinity").to(x.device)
            if len(rows) < 8 * rows.shape[1]:
                raise InputError(f"fd_infinity needs at least {8 * rows.shape[1]} reference rows; got {len(rows)}")
            backward = _target(Gaussian.of(x), x.device)
            at_infinity, more = self._intercept(rows, backward, seed)
            share = len(rows) / fit.n  # of the fit's own bias
            there = _estimate(rows, backward, seed)
            value -= (there.value - at_infinity) * share
            noise += more * share**2
            variance += there.first * share
            cross = 2 * (spread.second * there.second) ** 0.5 * share
            second += there.second * share**2 + cross
        return _about_root(value, spread.value, max(variance - second, second) + noise, len(x), seed)

    def _published(self, x: Tensor, target: GaussianTarget, least: int, seed: int) -> Metric:
        """The intercept sum_i c_i D(S_i) over subsets S_i.

        On it row j has sum_{i: j in S_i} c_i n / N_i times its influence on D, and a pair likewise.
        """
        n, source = len(x), stream(seed, "subsets")
        sizes = torch.linspace(least, n, self.points, dtype=torch.float64).long()
        rows = [torch.randperm(n, generator=source)[:size] for size in sizes.tolist()]
        values = torch.tensor([_distance(x[some.to(x.device)], target) for some in rows], dtype=torch.float64)
        shares = torch.zeros(len(rows), n, dtype=torch.float64)  # row j's weight in subset i
        for share, some in zip(shares, rows, strict=True):
            share[some] = 1 / len(some)
        level = 1 / sizes.double()
        centred = level - level.mean()
        at_zero = 1 / len(level) - level.mean() * centred / centred.square().sum()  # c
        whole = _estimate(x, target, seed)
        first = max(whole.first - 2 * whole.second, 0.0) * n * float((at_zero @ shares).square().sum())
        pairs = (shares @ shares.T).square()
        second = whole.second * n**2 * float(at_zero @ pairs @ at_zero)
        return _about_root(float(at_zero @ values), whole.value, first + second, n, seed)

    def _intercept(self, x: Tensor, target: GaussianTarget, seed: int) -> tuple[float, float]:
        """Mean intercept over partitions, and the variance of that mean from the choice of partitions."""
        source, found = stream(seed, "partitions"), []
        whole = _distance(x, target)
        for _ in range(self.partitions):
            order = torch.randperm(len(x), generator=source).to(x.device)
            means = [whole]
            for k in LEVELS[1:]:
                blocks = order[: len(x) // k * k].view(k, -1)
                means.append(sum(_distance(x[block], target) for block in blocks) / k)
            found.append(_line(torch.tensor(LEVELS).double(), torch.tensor(means, dtype=torch.float64)))
        intercepts = torch.tensor(found, dtype=torch.float64)
        spread = float(intercepts.var()) / len(found) if len(found) > 1 else 0.0
        return float(intercepts.mean()), spread


def _about_root(value: float, biased: float, variance: float, n: int, seed: int) -> Metric:
    """The interval of the biased distance, symmetric about its root as that of `fd`, moved by the bias.

    Where the distance is below its standard deviation nothing is known of the root, and the interval is the plain one.
    """
    if biased <= Z * math.sqrt(variance) / 2:
        return between(value, variance, n, seed)
    root = math.sqrt(biased)
    half = Z * math.sqrt(variance) / (2 * root)
    return Metric(value, value - biased + (root - half) ** 2, value - biased + (root + half) ** 2, n, seed)


def _line(levels: Tensor, values: Tensor) -> float:
    """Intercept at k = 0 of the weighted least squares line; a level's second-order variance grows as k."""
    weights = 1 / levels
    design = torch.stack([torch.ones_like(levels), levels], 1)
    normal = design.T @ (weights[:, None] * design)
    return float(torch.linalg.solve(normal, design.T @ (weights * values))[0])


def _target(fit: Gaussian, device: torch.device) -> GaussianTarget:
    """The objective's target from moments: covariance = F F^T."""
    covariance = fit.covariance.to(device)
    return GaussianTarget(fit.mean.to(device), graded_factor(covariance), covariance.trace())


def _distance(x: Tensor, target: GaussianTarget) -> float:
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    return float(_objective().distance(Moments(target.mean).measure(x, ones), _about_own_mean(target)))


def _estimate(x: Tensor, target: GaussianTarget, seed: int) -> Estimate:
    """Value; influences by the gradient in the moments, of which each row's are a part; second order by the Hessian."""
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    moments = Moments(target.mean).measure(x, ones)
    with torch.inference_mode(False), torch.enable_grad():
        held = moments.value.detach().clone().requires_grad_()
        value = _objective().distance(Sum(held, moments.weight.clone()), _about_own_mean(target))
        (slope,) = torch.autograd.grad(value, held)
    y = x.double() - target.mean
    influence = len(x) * (y @ slope[0] + ((y @ slope[1:]) * y).sum(1))  # up to a constant, which centring takes off
    return Estimate(float(value.detach()), influence - influence.mean(), _second_order(x, target, seed))


def _second_order(x: Tensor, target: GaussianTarget, seed: int) -> float:
    r"""S = 2 E[h^2] / n^2 with h(x, x') = z.z' + \sum_{ij} (E_ij E'_ij) / (2 a_i a_j (a_i + a_j)).

    E is zz^T - C_g in the eigenbasis of (F^T C_g F)^{1/2}, whose eigenvalues are a: the second derivative of
    -2 tr (F^T C F)^{1/2} in C. The mean of h^2 is over the pairs of a few rows, doubly centred. The sum over i and j is
    a square at every node of an integral, 1e-4 from it, which costs about 30 instead of d products of the rows.
    """
    n = len(x)
    rows = x[torch.randperm(n, generator=stream(seed, "pairs"))[:PAIRED].to(x.device)].double()
    gaussian = Gaussian.of(x)
    eigenvalues, vectors = torch.linalg.eigh(target.factor.T @ gaussian.covariance @ target.factor)
    keep = above_rounding(eigenvalues)
    a = eigenvalues[keep].sqrt()
    z = rows - gaussian.mean
    scaled = z @ (target.factor @ vectors[:, keep]) / a.sqrt()
    h = z @ z.T
    if len(a) == 0:  # no direction in which both sides vary: the distance is linear in C_g
        return 2 * off_diagonal_square(h) / n**2
    for u in torch.arange(math.log(1e-5 / (2 * float(a[-1]))), math.log(12 / (2 * float(a[0])))).tolist():
        half = scaled * (-a * math.exp(u)).exp()  # 1 / (a_i + a_j) = \int e^{u - (a_i + a_j) e^u} du, steps of 1
        h += 0.5 * math.exp(u) * (half @ scaled.T).square()
    return 2 * off_diagonal_square(h) / n**2


def off_diagonal_square(h: Tensor) -> float:
    """E[h(x, x')^2] of a degenerate kernel from a sample's matrix: doubly centred without its diagonal."""
    b = len(h)
    h = h.clone().fill_diagonal_(0)
    rows = h.sum(1) / (b - 1)
    mean = float(rows.mean())
    centred = (h - rows[:, None] - rows + mean).fill_diagonal_(0)
    return float(centred.square().sum()) / (b * (b - 1))


def _objective() -> Frechet:
    return objectives.build("frechet")


def _about_own_mean(target: GaussianTarget) -> GaussianTarget:
    """The target as seen by moments about its mean."""
    return target._replace(mean=torch.zeros_like(target.mean))
