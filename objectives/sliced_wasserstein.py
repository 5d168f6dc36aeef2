"""Sliced Wasserstein distance."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.objective import Objective
from rdm.reference import Reference
from rdm.registry import objectives
from rdm.statistic import Samples

BLOCK = 64  # projections handled at a time


class RowsTarget(NamedTuple):
    """The reference's rows."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1


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

    randomized = True

    def __post_init__(self) -> None:  # noqa: D105
        if self.projections < 1 or self.p < 1:
            raise InputError(f"expected projections >= 1 and p >= 1; got {self.projections} and {self.p}")

    def bind(self, reference: Reference) -> tuple[Samples, RowsTarget]:
        """Rows about the reference's mean, on both sides."""
        statistic = Samples(reference.mean)
        rows = statistic.measure(reference.features, reference.weights)
        return statistic, RowsTarget(rows.value, rows.weight / rows.mass)

    def distance(self, summary: Any, target: RowsTarget, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean over directions, `BLOCK` at a time."""
        x, y = summary.value, target.rows.to(summary.value.dtype)
        weights = summary.weight / summary.mass
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for block in _directions(x.shape[1], self.projections, generator).to(x).split(BLOCK):
            costs = _quantile_costs(block @ x.T, weights, block @ y.T, target.weights, self.p)
            total = total + costs.double().sum()
        mean = total / self.projections
        return _root(mean, self.p) if self.root else mean


def _directions(d: int, projections: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors, projections x d."""
    source = generator if generator is not None else torch.Generator().manual_seed(0)
    normal = torch.randn(projections, d, generator=source, dtype=torch.float64, device=source.device)
    return torch.nn.functional.normalize(normal, dim=1)


def _quantile_costs(x: Tensor, a: Tensor, y: Tensor, b: Tensor, p: float) -> Tensor:
    """One-dimensional costs of rows: x (P, n) with weights a (n) against y (P, m) with b (m)."""
    x, x_order = x.sort(1)
    y, y_order = y.sort(1)
    x_levels, y_levels = _levels(a, x_order), _levels(b, y_order)
    shared = 1 if len(x_levels) == len(y_levels) == 1 else len(x)  # one grid of levels for all directions, or one each
    x_levels, y_levels = (steps.expand(shared, -1).contiguous() for steps in (x_levels, y_levels))
    levels = torch.cat([x_levels, y_levels], 1).sort(1).values
    widths = levels.diff(dim=1, prepend=torch.zeros_like(levels[:, :1]))
    middles = levels - widths / 2  # strictly inside each step, so that rounding of the levels picks no wrong quantile
    quantiles = [
        rows.gather(1, torch.searchsorted(steps, middles).clamp_max(rows.shape[1] - 1).expand(len(rows), -1))
        for rows, steps in ((x, x_levels), (y, y_levels))
    ]
    return (widths.to(x.dtype) * (quantiles[0] - quantiles[1]).abs().pow(p)).sum(1)


def _levels(weights: Tensor, order: Tensor) -> Tensor:
    """Cumulated weights in sorted order, float64: one row for all directions where the weights are equal."""
    if bool((weights == weights[0]).all()):
        return (torch.arange(1, len(weights) + 1, dtype=torch.float64, device=weights.device) / len(weights))[None]
    return weights[order].cumsum(1)


def _root(value: Tensor, p: float) -> Tensor:
    """value^(1/p), with gradient 0 at value 0, where both sides coincide."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).pow(1 / p), 0.0)
