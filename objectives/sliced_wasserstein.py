"""Sliced Wasserstein distance."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.objective import Objective, Traits
from rdm.reference import Reference
from rdm.registry import objectives
from rdm.statistic import Samples

BLOCK = 64  # projections handled at a time


class SlicedTarget(NamedTuple):
    """The reference's rows, and its quantile functions along the fixed directions, sorted once."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1
    directions: Tensor  # P d
    steps: "Steps"  # of the projections on `directions`


class Steps(NamedTuple):
    """Quantile functions of P weighted samples, as step functions."""

    rows: Tensor  # P n, sorted
    levels: Tensor  # P n, or 1 n where the weights are equal: cumulated weight up to each row, float64


@objectives.register("sliced_wasserstein", examples=({"projections": 16}, {"projections": 16, "p": 1, "root": True}))
@dataclass(frozen=True)
class SlicedWasserstein(Objective):
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
        P (n + m) (d + log(n + m)), memory 64 (n + m).

    Raises:
        InputError: projections below 1 or p below 1.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> round(rdm.distance("sliced_wasserstein", x + 2, x).item(), 6)
    4.0
    """

    projections: int = 128
    p: float = 2
    root: bool = False

    def __post_init__(self) -> None:  # noqa: D105
        if self.projections < 1 or self.p < 1:
            raise InputError(f"expected projections >= 1 and p >= 1; got {self.projections} and {self.p}")

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(randomized=True)

    def bind(self, reference: Reference) -> tuple[Samples, SlicedTarget]:
        """Rows about the reference's mean; the reference is sorted along the fixed directions."""
        statistic = Samples(reference.mean)
        rows = statistic.measure(reference.features, reference.weights)
        weights = rows.weight / rows.mass
        directions = _directions(rows.value, self.projections, None)
        return statistic, SlicedTarget(rows.value, weights, directions, _steps(directions @ rows.value.T, weights))

    def distance(self, summary: Any, target: SlicedTarget, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean over directions, `BLOCK` at a time; directions redrawn where there is a generator."""
        x, weights = summary.value, summary.weight / summary.mass
        fixed = generator is None
        directions = target.directions if fixed else _directions(x, self.projections, generator)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for start in range(0, self.projections, BLOCK):
            block = directions[start : start + BLOCK].to(x.dtype)
            if fixed:
                reference = Steps(*(part[start : start + BLOCK] if len(part) > 1 else part for part in target.steps))
            else:
                reference = _steps(block @ target.rows.to(x.dtype).T, target.weights)
            total = total + _costs(_steps(block @ x.T, weights), reference, self.p).double().sum()
        mean = total / self.projections
        return _root(mean, self.p) if self.root else mean


def _directions(rows: Tensor, projections: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors, projections x d, in the rows' dtype and on their device."""
    source = generator if generator is not None else torch.Generator().manual_seed(0)
    normal = torch.randn(projections, rows.shape[1], generator=source, dtype=torch.float64, device=source.device)
    return torch.nn.functional.normalize(normal, dim=1).to(rows)


def _steps(rows: Tensor, weights: Tensor) -> Steps:
    """Sort projections "P n"; levels are one row for all directions where the weights are equal."""
    rows, order = rows.sort(1)
    if bool((weights == weights[0]).all()):
        even = torch.arange(1, len(weights) + 1, dtype=torch.float64, device=weights.device) / len(weights)
        return Steps(rows, even[None])
    return Steps(rows, weights[order].cumsum(1))


def _costs(x: Steps, y: Steps, p: float) -> Tensor:
    """One-dimensional costs, the integral over u of |x(u) - y(u)|^p: one a direction."""
    shared = max(len(x.levels), len(y.levels))  # 1 where one grid of levels serves all directions
    grids = [steps.levels.expand(shared, -1).contiguous() for steps in (x, y)]
    levels = torch.cat(grids, 1).sort(1).values
    widths = levels.diff(dim=1, prepend=torch.zeros_like(levels[:, :1]))
    middles = levels - widths / 2  # strictly inside each step, so that rounding of the levels picks no wrong quantile
    quantiles = [
        steps.rows.gather(1, torch.searchsorted(grid, middles).clamp_max(grid.shape[1] - 1).expand(len(x.rows), -1))
        for steps, grid in zip((x, y), grids, strict=True)
    ]
    gap = quantiles[0] - quantiles[1].to(quantiles[0].dtype)
    return (widths.to(gap.dtype) * gap.abs().pow(p)).sum(1)


def _root(value: Tensor, p: float) -> Tensor:
    """value^(1/p), with gradient 0 at value 0, where both sides coincide."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).pow(1 / p), 0.0)
