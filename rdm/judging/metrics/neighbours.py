"""Precision, recall, density and coverage by nearest neighbours, streamed in blocks of rows.

Distances come from float32 products; whatever these cannot tell from a neighbour's distance is formed again from
differences in float64, so that ties are ties (copies, discrete features) and every count is exact.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import Count, InputError, Measure, Metric, Real, between, generated, metrics, of_share, stream, thin

ROWS = 10_000  # a side, at most: the cost is quadratic
BLOCK = 512
ROUGH = torch.float32  # of the products
HALVES = 48  # random halves of the generated rows that give the variance of recall
SPARE = 4  # neighbours beyond the k-th that are formed again, among which rounding may have hidden it
PAIRS = 2**20  # coordinates of pairs that are formed again at a time
KEPT = 48  # neighbours kept a row, of which a half holds k with all but certainty


@dataclass(frozen=True)
class _Neighbours(Measure):
    k: Count = 5
    rows: Count = ROWS
    best: ClassVar[float] = 1.0
    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    halved: ClassVar[bool] = False
    user: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < self._least:
            raise InputError(f"{self.user} with k={self.k} needs rows >= {self._least}; got {self.rows}")

    @property
    def _least(self) -> int:
        """Rows of either side, which have k neighbours; where halves of the generated ones are judged, of a half."""
        return (self.k + 1) * (2 if self.halved else 1)

    def sides(self, x: Tensor, real: Real, seed: int) -> tuple[Tensor, Tensor]:
        """Both sides in float64 about the reference's mean, thinned, with enough rows for k neighbours.

        The mean is rounded to float32 and the scale to a power of 2, so that neither rounds what it moves.
        """
        x = thin(generated(x, real, least=self._least, user=self.user), self.rows, seed, "generated")
        y = thin(real.required_rows(self.user), self.rows, seed, "reference").to(x.device)
        if len(y) < self.k + 1:
            raise InputError(f"{self.user} needs at least {self.k + 1} reference rows; got {len(y)}")
        x, y = x.double(), y.double()
        centre = y.mean(0)
        centre = torch.where(centre.float().isfinite(), centre.float().double(), centre)
        x, y = x - centre, y - centre
        scale = 2.0 ** -round(math.log2(float(y.abs().max()) or 1.0))
        return x * scale, y * scale


@metrics.register("precision")
@dataclass(frozen=True)
class Precision(_Neighbours):
    """Share of generated rows within the k-th neighbour's distance of some reference row.

    Source: Kynkäänniemi et al. (2019), eq. 2; at most 10,000 rows a side. Interval: of the mean over new generated
    rows given the reference's, whose hits are independent (Wilson's).

    Shapes: features n d. Units: share. Cost: m (m + n) d.
    """

    user: ClassVar[str] = "precision"

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x, y = self.sides(x, real, seed)
        inside = _inside(x, y, self.k)
        return of_share(float(inside.mean()), float(inside.var()) / len(x), len(x), seed)


@metrics.register("density")
@dataclass(frozen=True)
class Density(_Neighbours):
    """Mean number of reference rows whose k-th neighbour is farther than the generated row, over k.

    Source: Naeem et al. (2020), eq. 3; at most 10,000 rows a side; may exceed 1. A row just as far is not counted, as
    in the published code, so that copies of the reference have 1. Interval: as of `precision`.

    Shapes: features n d. Units: none. Cost: m (m + n) d.
    """

    user: ClassVar[str] = "density"
    highest: ClassVar[float] = float("inf")

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x, y = self.sides(x, real, seed)
        hits = _hits(x, y, _radii(y, self.k), strict=True).double() / self.k
        return between(float(hits.mean()), float(hits.var()) / len(x), len(x), seed, least=self.lowest)


@metrics.register("recall")
@dataclass(frozen=True)
class Recall(_Neighbours):
    """Share of reference rows within the k-th neighbour's distance of some generated row.

    Source: Kynkäänniemi et al. (2019), eq. 2; at most 10,000 rows a side. Interval: of the mean over new generated
    sets of this size given the reference's rows, by the spread over random halves of the generated rows (whose
    variance without replacement is that of the whole).

    Shapes: features n d. Units: share. Cost: n (m + n) d + 48 n m comparisons.
    """

    user: ClassVar[str] = "recall"
    halved: ClassVar[bool] = True

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x, y = self.sides(x, real, seed)
        return _over_halves(_recalls(x, y, self.k, _masks(x, seed)), seed, len(x))


@metrics.register("coverage")
@dataclass(frozen=True)
class Coverage(_Neighbours):
    """Share of reference rows with a generated row within the distance of their k-th neighbour.

    Source: Naeem et al. (2020), eq. 4; at most 10,000 rows a side. Interval: of the mean over new generated sets of
    this size given the reference's rows. The variance is midway between the first two partial sums of Efron and
    Stein's (1981) alternating series: reference rows that one generated row covers alone, less those of a pair.

    Shapes: features n d. Units: share. Cost: m (m + n) d.
    """

    user: ClassVar[str] = "coverage"

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x, y = self.sides(x, real, seed)
        reach, n = _radii(y, self.k), len(x)
        alone, pairs, covered = torch.zeros(n, dtype=torch.float64, device=x.device), [], 0
        for _, within in _within(y, x, reach[:, None], strict=False):
            count = within.sum(1)
            covered += int((count > 0).sum())
            alone += within[count == 1].sum(0)
            two = within[count == 2].to(torch.uint8).topk(2, dim=1).indices.sort(1).values
            pairs.append(two[:, 0] * n + two[:, 1])
        shared = torch.cat(pairs).unique(return_counts=True)[1].double()
        first = float((alone - alone.mean()).square().sum()) / len(y) ** 2
        second = float(shared.square().sum()) / len(y) ** 2
        return of_share(covered / len(y), max(first - second / 2, first / 4), n, seed)


@metrics.register("f_score")
@dataclass(frozen=True)
class FScore(_Neighbours):
    """Harmonic mean 2 P R / (P + R) of `precision` and `recall`, 0 where both are.

    Source: Sajjadi et al. (2018), section 4.2 (F_1), of the precision and recall of Kynkäänniemi et al. (2019), as
    torch-fidelity gives it (with k = 3); at most 10,000 rows a side. Interval: as of `recall`, by the spread over
    random halves of the generated rows, in which both vary together.

    Shapes: features n d. Units: share. Cost: that of both.
    """

    user: ClassVar[str] = "f_score"
    halved: ClassVar[bool] = True

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x, y = self.sides(x, real, seed)
        inside, halves = _inside(x, y, self.k), _masks(x, seed)
        recall = _recalls(x, y, self.k, halves)
        precision = torch.cat([inside.mean()[None], halves.double() @ inside / halves.sum(1)])
        shares = 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)
        return _over_halves(shares, seed, len(x))


@dataclass(frozen=True)
class _Near:
    distances: Tensor  # n kept, squared, ascending, the row itself left out
    rows: Tensor  # n kept


def _nearest(x: Tensor, kept: int) -> _Near:
    found = []
    for i, squared in _blocks(x, x):
        squared.diagonal(i.start).fill_(torch.inf)
        found.append(squared.topk(kept, largest=False))
    return _Near(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def _radii(y: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th nearest other row, from differences."""
    near = _nearest(y, min(k + SPARE, len(y) - 1)).rows
    rows = torch.arange(len(y), device=y.device)[:, None].expand_as(near)
    return _exact(y, y, rows.flatten(), near.flatten()).view_as(near).sort(dim=1).values[:, k - 1]


def _radii_within(near: _Near, half: Tensor, k: int) -> Tensor:
    """The same within a half of the rows; -1 for rows that are not in it."""
    inside = half[near.rows]
    kth = (inside.cumsum(1) == k) & inside
    radii = torch.where(kth.any(1), near.distances.gather(1, kth.to(torch.uint8).argmax(1, keepdim=True))[:, 0], -1.0)
    return torch.where(half, radii, -1.0)


def _inside(x: Tensor, y: Tensor, k: int) -> Tensor:
    """For each x, 1 where it lies within the k-th neighbour's distance of some y, else 0."""
    return (_hits(x, y, _radii(y, k), strict=False) > 0).double()


def _recalls(x: Tensor, y: Tensor, k: int, halves: Tensor) -> Tensor:
    """The share of y within the k-th neighbour's distance of some x: of all of x, then of its halves."""
    near = _nearest(x, min(KEPT, len(x) - 1))
    parts = torch.stack([_radii_within(near, half, k) for half in halves])
    return _covered(y, x, _radii(x, k), parts)


def _hits(x: Tensor, y: Tensor, reach: Tensor, *, strict: bool) -> Tensor:
    """For each x the number of rows y whose squared reach it lies in."""
    return torch.cat([within.sum(1) for _, within in _within(x, y, reach[None], strict=strict)])


def _covered(y: Tensor, x: Tensor, whole: Tensor, parts: Tensor) -> Tensor:
    """The share of y within the reach of some x; then, ties as rounding has them, for each row of `parts`."""
    share = torch.zeros(1 + len(parts), dtype=torch.float64, device=y.device)
    for squared, within in _within(y, x, whole[None], strict=False):
        share[0] += within.any(1).sum()
        for r, reach in enumerate(parts):
            share[r + 1] += (squared <= reach).any(1).sum()
    return share / len(y)


def _within(x: Tensor, y: Tensor, reach: Tensor, *, strict: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Squared distances of blocks of x to all y, and which are below a reach (or at it): "n 1" or "1 m"."""
    rounding = (16 + x.shape[1] / 64) * torch.finfo(ROUGH).eps
    mine, theirs = (side.to(ROUGH).square().sum(1) for side in (x, y))
    for i, squared in _blocks(x, y):
        limit = reach if len(reach) == 1 else reach[i]
        gap = squared - limit.to(ROUGH)
        within = gap < 0 if strict else gap <= 0
        rows, columns = (gap.abs_() <= (mine[i, None] + theirs).mul_(rounding)).nonzero(as_tuple=True)
        exact, limits = _exact(x[i], y, rows, columns), limit.expand(len(squared), len(y))[rows, columns]
        within[rows, columns] = exact < limits if strict else exact <= limits
        yield squared, within


def _exact(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Squared distances of some pairs of rows by differences: the same either way about."""
    size = max(1, PAIRS // x.shape[1])
    pairs = zip(i.split(size), j.split(size), strict=True)
    return torch.cat([(x[some] - y[other]).square_().sum(1) for some, other in pairs])


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of a block of x to all y, by one matrix product; both sides are centred and scaled."""
    x, y = x.to(ROUGH), y.to(ROUGH)
    norms = y.square().sum(1)
    for start in range(0, len(x), BLOCK):
        i = slice(start, min(start + BLOCK, len(x)))
        yield i, torch.addmm(x[i].square().sum(1)[:, None] + norms, x[i], y.T, alpha=-2).clamp_min_(0)


def _masks(x: Tensor, seed: int) -> Tensor:
    """Random halves of the rows."""
    source, masks = stream(seed, "halves"), torch.zeros(HALVES, len(x), dtype=torch.bool)
    for row in masks:
        row[torch.randperm(len(x), generator=source)[: len(x) // 2]] = True
    return masks.to(x.device)


def _over_halves(shares: Tensor, seed: int, n: int) -> Metric:
    return of_share(float(shares[0]), float(shares[1:].var()), n, seed)
