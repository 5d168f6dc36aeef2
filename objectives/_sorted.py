"""One-dimensional transport by sorting: quantile functions of weighted projections, their costs and gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rdm.api import UNDIVIDED, Portion, usual

BLOCK = 2**20  # projected rows handled at a time: 8 MiB as sorted keys
INDEX = 2**28 - 1  # bits of a float64 that are 0 in what was float32, but the highest of them
Some = slice | Tensor  # numbers of directions


class Steps(NamedTuple):
    """Quantile functions of P weighted samples, as step functions."""

    rows: Tensor  # P n, sorted
    levels: Tensor  # P n, or 1 n where the weights are equal: cumulated weight up to each row, float64
    even: bool  # the weights are equal
    spread: Tensor | None = None  # P: where the rows are means over cells, the variance within these, float64


def directions(rows: Tensor, projections: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors, projections x d, as the rows' dtype and device; without a generator the same at every call."""
    source = generator if generator is not None else torch.Generator().manual_seed(0)
    normal = torch.randn(projections, rows.shape[1], generator=source, dtype=torch.float64, device=source.device)
    return torch.nn.functional.normalize(normal, dim=1).to(rows.dtype).to(rows.device, non_blocking=True)


def sort_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row sorted, and the order; exact, equal values in the order of their index.

    On CPU in float32 the index of a value is written into the low bits that the value leaves free as float64, turned
    where it is negative, and numpy sorts these numbers with vector instructions (5 times torch.sort's rate at
    128 x 8192). An index below 2^28 is less than half of the last bit of float32, which rounding takes off again.
    """
    if rows.dtype != torch.float32 or rows.device.type != "cpu" or rows.shape[1] > INDEX:
        return rows.sort(dim=1, stable=True)
    joined = (rows + 0.0).double()  # + 0.0 turns -0.0 into 0.0
    bits = joined.view(torch.int64)
    low = bits >> 63  # all bits where negative
    low &= INDEX
    low ^= torch.arange(rows.shape[1])
    bits |= low
    joined.numpy().sort(axis=1)
    order = bits >> 63
    order ^= bits
    order &= INDEX
    return joined.float(), order


def blocks(projections: int, rows: int, portion: Portion = UNDIVIDED) -> list[slice]:
    """Blocks of a portion of the projections, of so many rows each."""
    size, here = max(16, BLOCK // rows), portion.rows(projections)
    return [slice(start, min(start + size, here.stop)) for start in range(here.start, here.stop, size)]


def equal(weights: Tensor) -> bool:
    """Whether all weights are the same."""
    return usual((weights == weights[0]).all())


def steps(rows: Tensor, weights: Tensor) -> Steps:
    """Sort projections "P n"; levels are one row for all directions where the weights are equal."""
    if not equal(weights):
        return _steps(*sort_rows(rows), weights)
    if rows.dtype == torch.float32 and rows.device.type == "cpu":  # values alone sort twice as fast as with their order
        return Steps(torch.from_numpy(np.sort(rows.numpy(), axis=1)), _even_levels(rows), True)
    return Steps(rows.sort(dim=1).values, _even_levels(rows), True)


def cell_means(y: Steps, levels: Tensor, *, even: bool) -> Steps:
    """The quantile functions' means between consecutive levels, which a squared cost sees but for a constant.

    int_cell (x - y(u))^2 du = |cell| (x - mean)^2 + |cell| variance. The integral Y of a step function is linear
    between its levels, so that means are differences of Y; no common refinement of the two grids is formed.
    """
    exact = y.rows.double()
    widths = y.levels.diff(dim=1, prepend=torch.zeros_like(y.levels[:, :1]))
    integral = torch.nn.functional.pad((exact * widths).cumsum(1), (1, 0))  # at 0 and at each level
    starts = torch.nn.functional.pad(y.levels, (1, 0))
    last = y.rows.shape[1] - 1
    if y.even:
        step = (levels * (last + 1)).floor().long().clamp_max(last)
    else:
        step = torch.searchsorted(y.levels, levels.expand(len(y.levels), -1).contiguous()).clamp_max(last)
    at = step.expand(len(exact), -1)
    reached = levels - starts.expand(len(step), -1).gather(1, step)
    cumulated = integral.gather(1, at).addcmul_(exact.gather(1, at), reached)
    cells = levels.diff(dim=1, prepend=torch.zeros_like(levels[:, :1]))
    inside = cumulated.diff(dim=1, prepend=torch.zeros_like(cumulated[:, :1]))
    means = inside / torch.where(cells > 0, cells, 1.0)
    spread = (exact.square() * widths).sum(1) - (inside * means).sum(1)
    return Steps(means.to(y.rows.dtype), levels, even, spread.clamp_min_(0))


def mean_cost(
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    reference: Callable[[Some], Steps],
    p: float,
    rows: int,
    portion: Portion = UNDIVIDED,
) -> Tensor:
    """Mean over directions of the integral over u of |x(u) - y(u)|^p, float64, differentiable in x and the weights.

    A portion is the sum over its directions, divided by the number of all.

    `reference` gives the other side's steps, from so many `rows`, for some of the directions; true quantiles, no means
    over cells, where the weights require a gradient.
    """
    return _MeanCost.apply(x, weights, vectors, reference, p, rows, portion)


def costs(
    x: Tensor, weights: Tensor, vectors: Tensor, reference: Callable[[Some], Steps], p: float, rows: int
) -> Tensor:
    """The same, one a direction, without gradient."""
    x, weights, parts = x.detach(), weights.detach(), blocks(len(vectors), max(len(x), rows))
    return torch.cat([_cost(steps(vectors[k] @ x.T, weights), reference(k), p, slope=False)[0] for k in parts])


def root(value: Tensor, p: float) -> Tensor:
    """value^(1/p), with gradient 0 at value 0, where both sides coincide."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).pow(1 / p), 0.0)


class _MeanCost(torch.autograd.Function):
    """The gradient is formed block by block with the value, so that nothing of size P n is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, vectors: Tensor, reference: Any, p: float, others: int, portion: Portion
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        for k in blocks(len(vectors), max(len(x), others), portion):
            rows, order = sort_rows(vectors[k] @ x.T)
            mine, theirs = _steps(rows, order, weights), reference(k)
            cost, slope = _cost(mine, theirs, p, slope=gradient is not None)
            total += cost.sum()
            if of_weights is not None:
                potential = _potential(mine, theirs, p)
                of_weights += torch.empty_like(potential).scatter_(1, order, potential).sum(0)
            if gradient is not None and slope is not None:
                gradient.addmm_(torch.empty_like(slope).scatter_(1, order, slope).T, vectors[k])
        ctx.save_for_backward(*(None if each is None else each.div_(len(vectors)) for each in (gradient, of_weights)))
        return total / len(vectors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, of_weights = (None if t is None else cotangents[0].to(t.dtype) * t for t in ctx.saved_tensors)
        return gradient, of_weights, None, None, None, None, None


def _steps(rows: Tensor, order: Tensor, weights: Tensor) -> Steps:
    if equal(weights):
        return Steps(rows, _even_levels(rows), True)
    return Steps(rows, weights[order].cumsum(1), False)


def _even_levels(rows: Tensor) -> Tensor:
    count = rows.shape[1]
    return torch.arange(1, count + 1, dtype=torch.float64, device=rows.device)[None] / count


def _cost(x: Steps, y: Steps, p: float, *, slope: bool) -> tuple[Tensor, Tensor | None]:
    """One-dimensional costs "P", float64, and their derivatives in x's sorted rows "P n"."""
    alike = x.even and y.even and x.rows.shape == y.rows.shape
    if p == 2 and not alike:
        y, alike = cell_means(y, x.levels, even=x.even), True
    if alike:  # row by row
        gap = x.rows - y.rows.to(x.rows.dtype)
        cost, derivative = _power(gap, p, slope=slope)
        if x.even:
            summed = cost.sum(1).double() / gap.shape[1]
            derivative = None if derivative is None else derivative.div_(gap.shape[1])
        else:
            widths = x.levels.diff(dim=1, prepend=torch.zeros_like(x.levels[:, :1])).to(gap.dtype)
            summed = (widths * cost).sum(1).double()
            derivative = None if derivative is None else derivative.mul_(widths)
        return summed if y.spread is None else summed + y.spread, derivative
    widths, mine, theirs = _common(x, y)
    gap = x.rows.gather(1, mine) - y.rows.gather(1, theirs).to(x.rows.dtype)
    cost, derivative = _power(gap, p, slope=slope)
    widths = widths.to(gap.dtype)
    summed = (widths * cost).sum(1).double()
    if derivative is None:
        return summed, None
    return summed, torch.zeros_like(x.rows).scatter_add_(1, mine, derivative.mul_(widths))


def _potential(x: Steps, y: Steps, p: float) -> Tensor:
    """Derivatives of the costs in the weights of x's sorted rows, "P n", up to a constant.

    A weight moves all levels from its own on, and level k, between rows k and k + 1, the cost at y(level k) from one's
    to the other's. Where it is a level of y too, the mean of both sides' derivatives.
    """
    slack = 8 * x.rows.shape[1] * torch.finfo(torch.float64).eps  # of a cumulated sum
    levels = x.levels[:, :-1].expand(max(len(x.levels), len(y.levels)), -1)
    grid = y.levels.expand(len(levels), -1).contiguous()
    moves = torch.zeros(len(x.rows), x.rows.shape[1] - 1, dtype=torch.float64, device=x.rows.device)
    for side in (-slack, slack):
        at = torch.searchsorted(grid, levels + side).clamp_max(grid.shape[1] - 1).expand(len(x.rows), -1)
        theirs = y.rows.double().gather(1, at)
        before, after = ((rows.double() - theirs).abs().pow(p) for rows in (x.rows[:, :-1], x.rows[:, 1:]))
        moves += (before - after) / 2
    return torch.nn.functional.pad(moves.flip(1).cumsum(1).flip(1), (0, 1))


def _power(gap: Tensor, p: float, *, slope: bool) -> tuple[Tensor, Tensor | None]:
    """|gap|^p and its derivative."""
    if p == 2:
        return gap.square(), 2 * gap if slope else None
    size = gap.abs()
    if p == 1:
        return size, gap.sign() if slope else None
    return size.pow(p), size.pow(p - 1).mul_(p * gap.sign()) if slope else None


def _common(x: Steps, y: Steps) -> tuple[Tensor, Tensor, Tensor]:
    """The common refinement of both grids of levels: widths of its steps, and each side's row in them, "P n+m"."""
    shared = max(len(x.levels), len(y.levels))  # 1 where one grid of levels serves all directions
    grids = [side.levels.expand(shared, -1).contiguous() for side in (x, y)]
    levels = torch.cat(grids, 1).sort(1).values
    widths = levels.diff(dim=1, prepend=torch.zeros_like(levels[:, :1]))
    middles = levels - widths / 2  # strictly inside each step, so that rounding of the levels picks no wrong quantile
    mine, theirs = (
        torch.searchsorted(grid, middles).clamp_max(grid.shape[1] - 1).expand(len(x.rows), -1) for grid in grids
    )
    return widths, mine, theirs
