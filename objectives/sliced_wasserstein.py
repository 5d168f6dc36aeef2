"""Sliced Wasserstein distances: the mean over directions, and the largest."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from objectives._sorted import Some, Steps, blocks, cell_means, costs, directions, equal, mean_cost, root, steps
from rdm.api import UNDIVIDED, Count, InputError, Objective, Portion, Range, Real, Samples, Traits, objectives, usual


class SlicedTarget(NamedTuple):
    """The reference's rows, and its quantile functions along the fixed directions."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1
    largest: float  # absolute value among the rows
    fixed: "_Fixed"


@dataclass(frozen=True)
class _Sliced(Objective):
    """What both distances share: directions, cost and the sorted reference."""

    projections: Count = 128
    p: Annotated[float, Range(least=1, most=64)] = 2
    root: bool = False

    @property
    def traits(self) -> Traits:
        return Traits(randomized=True)

    def bind(self, reference: Real) -> tuple[Samples, SlicedTarget]:
        """Rows about the reference's mean, sorted along the fixed directions once these are used."""
        return _bind(reference, self.projections)


@objectives.register("sliced_wasserstein", examples=({"projections": 16}, {"projections": 16, "p": 1, "root": True}))
@dataclass(frozen=True)
class SlicedWasserstein(_Sliced):
    r"""Mean over directions of the one-dimensional Wasserstein cost between both sides' projections.

    .. math:: \frac{1}{P} \sum_{\theta} \int_0^1 |F_\theta^{-1}(u) - G_\theta^{-1}(u)|^p \, du

    Source: Bonneel et al. (2015), definition 5, with the quantile functions F^{-1}, G^{-1} of the weighted projections
    (exact for unequal n and any weights). Directions are uniform on the sphere, drawn from `generator`; without one
    they are the same at every call.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Feature distance to the power p; the distance itself with `root=True`. Unbiased in the directions (before the
        root), biased upwards in n and m.
    Cost:
        P (n + m) (d + log(n + m)), memory n + m and tiles of 8 MiB; of the reference only once where directions are
        fixed, which keeps P m numbers. m is 65,536 at most: of a larger reference, rows drawn uniformly.

    Raises:
        InputError: projections below 1 or p outside [1, 64].

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> round(rdm.distance("sliced_wasserstein", x + 2, x).item(), 6)
    4.0
    """

    @property
    def divisible(self) -> bool:
        """The mean is; its root is not."""
        return not self.root

    def distance(self, summary: Any, target: SlicedTarget, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean over directions, a block at a time; directions redrawn where there is a generator."""
        mean = self.part(summary, target, UNDIVIDED, generator=generator)
        return root(mean, self.p) if self.root else mean

    def part(
        self, summary: Any, target: SlicedTarget, portion: Portion, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """What its share of the directions adds to the mean."""
        x, weights = _representable(summary.value, target, self.p), summary.weight / summary.mass
        vectors, reference = _drawn(x, weights, target, self.projections, self.p, generator)
        return mean_cost(x, weights, vectors, reference, self.p, len(target.rows), portion)


@objectives.register("max_sliced_wasserstein", examples=({"projections": 16}, {"projections": 16, "p": 1}))
@dataclass(frozen=True)
class MaxSlicedWasserstein(_Sliced):
    r"""Largest one-dimensional Wasserstein cost between both sides' projections, over the drawn directions.

    .. math:: \max_{\theta} \int_0^1 |F_\theta^{-1}(u) - G_\theta^{-1}(u)|^p \, du

    Source: Deshpande et al. (2019), definition 2, with the maximum over P drawn directions in place of all: a lower
    bound, which in many dimensions is far below it. The gradient is that of the maximising direction's cost. Exact
    for unequal n and any weights; directions as in `sliced_wasserstein`.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Feature distance to the power p; the distance itself with `root=True`. Biased upwards in n and m, downwards in
        the directions.
    Cost:
        P (n + m) (d + log(n + m)), memory n + m and tiles of 8 MiB; of the reference only once where directions are
        fixed, which keeps P m numbers. m is 65,536 at most: of a larger reference, rows drawn uniformly.

    Raises:
        InputError: projections below 1 or p outside [1, 64].

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> round(rdm.distance("max_sliced_wasserstein", x + 2, x).item(), 6)
    4.0
    """

    def distance(self, summary: Any, target: SlicedTarget, *, generator: torch.Generator | None = None) -> Tensor:
        """The cost of the direction where it is largest; directions redrawn where there is a generator."""
        x, weights = _representable(summary.value, target, self.p), summary.weight / summary.mass
        vectors, reference = _drawn(x, weights, target, self.projections, self.p, generator)
        rows = len(target.rows)
        k = costs(x, weights, vectors, reference, self.p, rows).argmax(0, keepdim=True)
        largest = mean_cost(x, weights, vectors[k], lambda _: reference(k), self.p, rows)
        return root(largest, self.p) if self.root else largest


def _bind(reference: Real, projections: int) -> tuple[Samples, SlicedTarget]:
    statistic = Samples(reference.mean)
    held = reference.held("a sliced distance")
    rows = statistic.measure(held.features, held.masses)
    weights = rows.weight / rows.mass

    largest = max(float(end.abs()) for end in rows.value.aminmax())
    return statistic, SlicedTarget(rows.value, weights, largest, _Fixed(rows.value, weights, projections))


@dataclass(eq=False)
class _Fixed:
    """The reference along directions that are the same at every call, sorted once, where asked for."""

    rows: Tensor
    weights: Tensor
    projections: int
    _coarse: tuple[int, Steps] | None = field(default=None, init=False)  # of the last number of cells

    @functools.cached_property
    def whole(self) -> tuple[Tensor, Steps]:
        """Directions "P d" and the steps along them."""
        vectors = directions(self.rows, self.projections, None)
        parts = [steps(vectors[k] @ self.rows.T, self.weights) for k in blocks(self.projections, len(self.rows))]
        return vectors, _joined(parts)

    def coarse(self, n: int) -> Steps:
        """Their means over n equal cells, all that p = 2 needs."""
        kept = self._coarse
        if kept is None or kept[0] != n:
            levels = torch.arange(1, n + 1, dtype=torch.float64, device=self.weights.device)[None] / n
            parts = blocks(self.projections, max(n, len(self.rows)))
            whole = self.whole[1]
            kept = self._coarse = n, _joined([cell_means(_part(whole, k), levels, even=True) for k in parts])
        return kept[1]


def _joined(parts: list[Steps]) -> Steps:
    """Steps of all directions from those of blocks of them."""
    first = parts[0]
    levels = first.levels if first.even else torch.cat([part.levels for part in parts])
    spreads = [part.spread for part in parts if part.spread is not None]
    return Steps(torch.cat([p.rows for p in parts]), levels, first.even, torch.cat(spreads) if spreads else None)


def _part(whole: Steps, k: Some) -> Steps:
    """Steps of some directions."""
    levels = whole.levels if whole.even else whole.levels[k]
    return Steps(whole.rows[k], levels, whole.even, None if whole.spread is None else whole.spread[k])


def _representable(x: Tensor, target: SlicedTarget, p: float) -> Tensor:
    """The rows, in float64 where the costs leave float32's range."""
    bound = 10 ** (29.999 / p) / (2 * x.shape[1] ** 0.5)
    low, high = x.detach().aminmax()
    if target.largest < bound and usual((low > -bound) & (high < bound)):
        return x
    largest = max(target.largest, float(low.abs()), float(high.abs()))
    digits = p * math.log10(2 * largest * x.shape[1] ** 0.5 or 1.0)
    if digits > 300:
        raise InputError(
            f"costs |x - y|^{p:g} of features up to {largest:.1e} leave float64; scale them down or lower p"
        )
    return x if digits < 30 else x.double()


def _drawn(
    x: Tensor, weights: Tensor, target: SlicedTarget, projections: int, p: float, generator: torch.Generator | None
) -> tuple[Tensor, Callable[[Some], Steps]]:
    """Directions, and the reference's steps along some of them: the fixed ones, or new ones from the generator."""
    if generator is None:
        vectors, whole = target.fixed.whole
        exact = weights.requires_grad or (whole.even and len(x) == len(target.rows))
        if p == 2 and equal(weights) and not exact:
            whole = target.fixed.coarse(len(x))
        return vectors.to(x.dtype), lambda k: _part(whole, k)
    vectors = directions(x, projections, generator)
    return vectors, lambda k: steps(vectors[k] @ target.rows.to(x.dtype).T, target.weights)
