"""Weighted double sums of a kernel, streamed in tiles.

The double sum never holds the n x m matrix and forms the gradient in the sweep that forms the value: two matrix
products in all. Tiles are float32 where the rows are, their sums float64, with float64 weights: a mean of float32
weights is off by 1e-8 of the kernel, the value by 1e-4 of itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from objectives._pairs import Kernel, Strip
from objectives._sides import Side, draw
from rdm.api import UNDIVIDED, Portion, usual

TILE = 1024, 2048  # rows of either side in a tile: 8 MiB in float32, whatever n and m
MANY = 512  # values of equal weight in a row from which on sums of `SUMMED` of them are float32, which is off by 1e-9
SUMMED = 64


def cross_sum(
    kernel: Kernel,
    x: Tensor,
    a: Tensor,
    y: Side,
    b: Tensor,
    portion: Portion = UNDIVIDED,
    side: Side | None = None,
) -> Tensor:
    """sum_ij a_i b_j k(x_i, y_j) as a float64 scalar, differentiable in x and a; y and b are constants.

    Radial kernels are counted from their origin. What overflows in float32 (rows beyond 1e19) is done in float64.
    A portion is the sum over its share of the tiles. Products are those of y; `side` is x as they take it, where it is
    known.
    """
    x = x.double() if kernel.exact else x
    side = y.like(x.detach()) if side is None else side
    total = _CrossSum.apply(x, a, side, y.to(side.rows.dtype), b, kernel, portion)
    if side.rows.dtype != torch.float64 and not usual(torch.isfinite(total)):
        return _CrossSum.apply(x, a, side.to(torch.float64), y.to(torch.float64), b, kernel, portion)
    return total


def self_sum(
    kernel: Kernel,
    x: Tensor,
    a: Tensor,
    *,
    diagonal: bool,
    portion: Portion = UNDIVIDED,
    side: Side | None = None,
) -> Tensor:
    """sum_ij a_i a_j k(x_i, x_j), with or without i = j, as a float64 scalar, differentiable; see `cross_sum`."""
    x = x.double() if kernel.exact else x
    side = Side(x.detach()) if side is None else side
    total = _SelfSum.apply(x, a, side, kernel, diagonal, portion)
    if side.rows.dtype != torch.float64 and not usual(torch.isfinite(total)):
        return _SelfSum.apply(x, a, side.to(torch.float64), kernel, diagonal, portion)
    return total


class _CrossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, side: Side, y: Side, b: Tensor, kernel: Kernel, portion: Portion
    ) -> Tensor:
        sweep = _Sweep(kernel, side, a, y, b, ctx.needs_input_grad[0])
        tiles = list(product(_blocks(len(x), TILE[0]), _blocks(len(b), TILE[1])))
        for i, j in tiles[portion.rows(len(tiles))]:
            for strip in sweep.strips(i, j, same=False):
                own = _within(i, strip.rows)
                sums = sweep.summed(strip.values, j)
                sweep.means[own] += sums
                sweep.weigh(strip, sums, own, i, j)
            sweep.pull(i, j)
        means = sweep.means.mul_(sweep.mass(kernel.value_unit))
        ctx.save_for_backward(sweep.gradient(x.dtype), means)
        return a @ means

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *_scaled(cotangents[0], *ctx.saved_tensors), None, None, None, None, None


class _SelfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, side: Side, kernel: Kernel, diagonal: bool, portion: Portion) -> Tensor:
        sweep = _Sweep(kernel, side, a, side, a, ctx.needs_input_grad[0])
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        blocks = list(_blocks(len(x), TILE[0] if len(x) > TILE[0] else max(1, TILE[0] // 2)))  # two spare a tile
        tiles = [(i, j) for i, j in product(blocks, blocks) if j.start >= i.start]  # the kernel is symmetric
        for i, j in tiles[portion.rows(len(tiles))]:
            for strip in sweep.strips(i, j, same=i == j):
                without = i == j and not diagonal
                if without:
                    strip.values.diagonal(strip.rows.start).zero_()
                own = _within(i, strip.rows)
                sums = sweep.summed(strip.values, j)
                total += a[own] @ sums if i == j else 2 * (a[own] @ sums)
                sweep.means[own] += sums
                if i != j and ctx.needs_input_grad[1]:
                    sweep.means[j] += sweep.summed(strip.values.T, own)
                sweep.weigh(strip, sums, own, i, j, both=i != j, without=without)
            sweep.pull(i, j, both=i != j)
        unit = sweep.mass(kernel.value_unit)
        ctx.save_for_backward(sweep.gradient(x.dtype, 2), sweep.means.mul_(2 * unit))
        return total * unit

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *_scaled(cotangents[0], *ctx.saved_tensors), None, None, None, None


@dataclass
class _Sweep:
    """A double sum under way: sums of values, and what the gradient is made of."""

    kernel: Kernel
    x: Side
    a: Tensor
    y: Side
    b: Tensor
    pulls: bool  # a gradient is asked for
    means: Tensor = field(init=False)  # sum_j b_j k(x_i, y_j), float64, in units of the kernel and of `mass`
    reach: Tensor = field(init=False)  # sum_j w_ij, float64, of weighted slopes w_ij
    drawn: Tensor = field(init=False)  # sum_j w_ij y_j

    def __post_init__(self) -> None:
        self.means = torch.zeros_like(self.a)
        self.reach, self.drawn = torch.zeros_like(self.a), torch.zeros_like(self.x.rows if self.pulls else self.a)
        self._equal = [_equal(weights) for weights in (self.a, self.b)]
        self._weights = [weights.to(self.x.rows.dtype) for weights in (self.a, self.b)]
        self._tile = self.x.rows.new_empty(min(TILE[0], len(self.a)) * min(TILE[1], len(self.b)), dtype=self.x.dtype)

    def strips(self, i: slice, j: slice, *, same: bool) -> Iterator[Strip]:
        """Values and slopes of a tile."""
        return self.kernel.strips(self.x, i, self.y, j, same=same, out=self._pairs(i, j))

    def summed(self, values: Tensor, j: slice) -> Tensor:
        """sum_j b_j v_ij in float64, in units of `mass`."""
        if not self._equal[1]:
            return values.double() @ self.b[j]
        rows, columns = values.shape
        if values.dtype == torch.float64 or columns < MANY or columns % SUMMED:
            return values.sum(1, dtype=torch.float64)
        return values.view(rows, -1, SUMMED).sum(2).sum(1, dtype=torch.float64)

    def mass(self, unit: float) -> Tensor:
        """What sums are to be multiplied by: the other side's weight where that is one number."""
        return unit * self.b[0] if self._equal[1] else torch.full_like(self.b[0], unit)

    def weigh(
        self, strip: Strip, sums: Tensor, own: slice, i: slice, j: slice, *, both: bool = False, without: bool = False
    ) -> None:
        """Leave slopes times weights in the tile for `pull`, which `both` sides will be asked for."""
        if not self.pulls:
            return
        slopes, left = strip.slopes(), self._pairs(i, j)[strip.rows]
        if without:
            slopes.diagonal(strip.rows.start).zero_()
        if not self._equal[0]:
            slopes.mul_(self._weights[0][own][:, None])
        if not self._equal[1]:
            slopes.mul_(self._weights[1][j])
        if strip.exact:
            left.zero_()
            self._pull_exactly(slopes, own, j, both=both)
            return
        if left.data_ptr() != slopes.data_ptr():
            left.copy_(slopes)
        self.reach[own] += sums if strip.shared and all(self._equal) else slopes.sum(1)
        if both:
            self.reach[j] += slopes.sum(0)

    def pull(self, i: slice, j: slice, *, both: bool = False) -> None:
        """Rows of i towards those of j by the slopes in the tile, and the other way."""
        if self.pulls:
            draw(self.drawn[i], self._pairs(i, j), self.y, j)
            if both:
                draw(self.drawn[j], self._pairs(i, j).T, self.x, i)

    def gradient(self, dtype: torch.dtype, times: Tensor | float = 1) -> Tensor | None:
        """In the rows, whose weights are in it, and so many times that."""
        if not self.pulls:
            return None
        for weights, equal in zip((self.a, self.b), self._equal, strict=True):
            times = times * weights[0] if equal else times
        return self.kernel.pulled(self.reach, self.x.rows, self.drawn, times).to(dtype)

    def _pairs(self, i: slice, j: slice) -> Tensor:
        rows, columns = i.stop - i.start, j.stop - j.start
        return self._tile[: rows * columns].view(rows, columns)

    def _pull_exactly(self, slopes: Tensor, i: slice, j: slice, *, both: bool) -> None:
        """The same at once in the dtype of the slopes, in which near rows do not cancel."""
        x, y = self.x.rows[i].to(slopes.dtype), self.y.rows[j].to(slopes.dtype)
        self.drawn[i] += slopes @ y - slopes.sum(1)[:, None] * x
        if both:
            self.drawn[j] += slopes.T @ x - slopes.sum(0)[:, None] * y


def _scaled(cotangent: Tensor, gradient: Tensor | None, means: Tensor) -> tuple[Tensor | None, Tensor]:
    """Gradients in the rows and in their weights."""
    return None if gradient is None else cotangent.to(gradient.dtype) * gradient, cotangent * means


def _equal(weights: Tensor) -> bool:
    """Whether all are known to be the same; an accelerator, where multiplying by them is cheap, is not asked."""
    return weights.device.type == "cpu" and bool((weights == weights[0]).all())


def _within(block: slice, part: slice) -> slice:
    """Rows of a block's part."""
    return slice(block.start + part.start, block.start + part.stop)


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
