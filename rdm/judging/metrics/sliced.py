"""Sliced Wasserstein distance along fixed directions."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from objectives._sorted import directions, sort_rows
from rdm.api import Count, Distance, Estimate, Range, Real, Samples, draw, generated, metrics, stream

BLOCK = 2**20  # projected rows at a time
ROWS = 16_384
SPLITS = 32  # random halves that estimate the second-order variance


@metrics.register("sw")
@dataclass(frozen=True)
class SlicedWasserstein(Distance):
    r"""Sliced Wasserstein-2 distance, rooted, along 1,024 directions that are the same at every call.

    .. math:: \Big( \frac{1}{P} \sum_\theta \frac{1}{N} \sum_j |x_{(j)}^\theta - y_{(j)}^\theta|^2 \Big)^{1/2}

    Source: Feng et al. (2026), "Representation Distribution Matching", eq. 5; as objective `sliced_wasserstein` with
    root=True. N is 16,384 or the smaller side's number of rows; either side is thinned to it at random. Biased
    upwards in N.

    directions: "fixed", drawn on the CPU, the same on every device; or "irdm", drawn as its code does, in float32 from
    seed 0 on the rows' own device, 64 at a time.

    Interval: of the mean over new sets of N rows, given the reference's rows and the directions. The influences are
    the Kantorovich potentials, mean over directions; the second-order variance S is that of the mean distance of both
    halves over random halves of the rows, where everything of first order cancels.

    Shapes: features n d. Units: feature distance. Cost: P N (d + log N + 32), memory P N.

    Raises:
        InputError: fewer than 4 rows on a side.

    >>> from rdm.api import Real
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> round(SlicedWasserstein()(x + 2, Real(x)).value, 6)
    2.0
    """

    squared: ClassVar[bool] = False
    projections: Count = 1024
    rows: Annotated[int, Range(least=4)] = ROWS
    directions: Literal["fixed", "irdm"] = "fixed"

    def estimate(self, x: Tensor, real: Real, *, seed: int = 0) -> Estimate:  # noqa: D102
        x, y = generated(x, real, least=4, user="sw"), real.required_rows("sw")
        n = min(len(x), len(y), self.rows)
        x = x[draw(len(x), n, seed, "generated").to(x.device)] if n < len(x) else x
        y = y[draw(len(y), n, seed, "reference").to(y.device)] if n < len(y) else y
        return mean_squared(x, y.to(x), self._vectors(x), seed).root()

    def _vectors(self, x: Tensor) -> Tensor:
        """Unit vectors "p d"."""
        if self.directions == "fixed":
            return directions(x.double(), self.projections, None)
        source = torch.Generator(x.device).manual_seed(0)
        parts = [64] * (self.projections // 64) + [self.projections % 64]
        drawn = [torch.randn(some, x.shape[1], generator=source, device=x.device) for some in parts if some]
        return torch.nn.functional.normalize(torch.cat(drawn), dim=1)


def mean_squared(x: Tensor, y: Tensor, vectors: Tensor, seed: int) -> Estimate:
    """SW_2^2 of two sides with equally many rows."""
    n, centre = len(x), y.double().mean(0)
    ones = torch.ones(n, dtype=torch.float64, device=x.device)
    x, y = (Samples(centre).measure(side, ones).value for side in (x, y))
    vectors, halves, projections = vectors.to(y), _halves(n, seed).to(x.device), len(vectors)
    value, split = 0.0, torch.zeros(len(halves), dtype=torch.float64, device=x.device)
    influence = torch.zeros(n, dtype=torch.float64, device=x.device)
    for some in vectors.split(max(64, BLOCK // n)):
        rows, order = sort_rows(some @ x.T)
        targets = sort_rows(some @ y.T)[0]
        value += float((rows - targets).square().sum(dtype=torch.float64)) / n
        influence += torch.empty_like(rows).scatter_(1, order, _potentials(rows, targets)).double().sum(0)
        split += _half_costs(rows, order, targets, halves)
    second = float((split / projections).var())
    influence /= projections
    return Estimate(value / projections, influence - influence.mean(), second)


def _potentials(rows: Tensor, targets: Tensor) -> Tensor:
    """Kantorovich potentials at sorted rows: integrals of 2 (x - T(x)) by the trapezoid rule."""
    gaps = rows - targets
    steps = (gaps[:, 1:] + gaps[:, :-1]) * rows.diff(dim=1)
    return torch.nn.functional.pad(steps.cumsum(1), (1, 0))


def _halves(n: int, seed: int) -> Tensor:
    """Random halves of n rows (an odd one left out of either), as masks: 0 first half, 1 second, 2 none."""
    source = stream(seed, "halves")
    side = torch.full((SPLITS, n), 2, dtype=torch.uint8)
    for row in side:
        order = torch.randperm(n, generator=source)
        row[order[: n // 2]], row[order[n // 2 : n // 2 * 2]] = 0, 1
    return side


def _half_costs(rows: Tensor, order: Tensor, targets: Tensor, halves: Tensor) -> Tensor:
    """For each split the mean of both halves' costs to the whole reference, summed over directions."""
    h = rows.shape[1] // 2
    pairs = targets[:, : 2 * h].view(len(rows), h, 2)
    middle, within = pairs.mean(2), pairs.sub(pairs.mean(2, keepdim=True)).square().mean(dtype=torch.float64)
    found = []
    for half in halves:
        sides = half[order]
        costs = [(rows[sides == k].view(len(rows), h) - middle).square().mean(dtype=torch.float64) for k in (0, 1)]
        found.append((sum(costs) / 2 + within) * len(rows))
    return torch.stack(found)
