"""Weighted double sums of a kernel, streamed in tiles.

The double sum never holds the n x m matrix and forms the gradient in the sweep that forms the value: two matrix
products in all. Tiles are float32 where the rows are, their sums float64, with float64 weights: a mean of float32
weights is off by 1e-8 of the kernel, the value by 1e-4 of itself.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from objectives._kernels import Kernel
from rdm.api import UNDIVIDED, Portion, usual

TILE = 1024, 2048  # rows of either side in a tile: 8 MiB in float32, whatever n and m
SUMMED = 128  # rows of a tile that are converted to float64 at a time, so that they stay in cache


def cross_sum(kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor, portion: Portion = UNDIVIDED) -> Tensor:
    """sum_ij a_i b_j k(x_i, y_j) as a float64 scalar, differentiable in x and a; y and b are constants.

    Radial kernels are counted from their origin. What overflows in float32 (rows beyond 1e19) is done in float64.
    A portion is the sum over its share of the tiles.
    """
    total = _CrossSum.apply(x.double() if kernel.exact else x, a, y, b, kernel, portion)
    if x.dtype != torch.float64 and not usual(torch.isfinite(total)):
        return _CrossSum.apply(x.double(), a, y, b, kernel, portion)
    return total


def self_sum(kernel: Kernel, x: Tensor, a: Tensor, *, diagonal: bool, portion: Portion = UNDIVIDED) -> Tensor:
    """sum_ij a_i a_j k(x_i, x_j), with or without i = j, as a float64 scalar, differentiable; see `cross_sum`."""
    total = _SelfSum.apply(x.double() if kernel.exact else x, a, kernel, diagonal, portion)
    if x.dtype != torch.float64 and not usual(torch.isfinite(total)):
        return _SelfSum.apply(x.double(), a, kernel, diagonal, portion)
    return total


class _CrossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor, kernel: Kernel, portion: Portion) -> Tensor:
        y, a_, b_ = y.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        means = torch.zeros_like(a)  # sum_j b_j k(x_i, y_j)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        tiles = list(product(_blocks(len(x), TILE[0]), _blocks(len(y), TILE[1])))
        for i, j in tiles[portion.rows(len(tiles))]:
            value, slope = kernel.tile(x[i], y[j], same=False)
            means[i] += _sums(value, b[j])
            if gradient is not None:
                _pull(kernel, gradient[i], slope.mul_(b_[j]), x[i], y[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(a_[:, None]), means)
        return a @ means

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        return *_scaled(cotangents[0], *ctx.saved_tensors), None, None, None, None


class _SelfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, kernel: Kernel, diagonal: bool, portion: Portion) -> Tensor:
        a_, means = a.to(x.dtype), torch.zeros_like(a)  # sum_j a_j k(x_i, x_j), whole where it is asked for
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        blocks = list(_blocks(len(x), TILE[0]))
        tiles = [(i, j) for i, j in product(blocks, blocks) if j.start >= i.start]  # the kernel is symmetric
        for i, j in tiles[portion.rows(len(tiles))]:
            value, slope = kernel.tile(x[i], x[j], same=i == j)
            if i == j and not diagonal:
                value.fill_diagonal_(0.0)
                slope.fill_diagonal_(0.0)
            sums = _sums(value, a[j])
            total += a[i] @ sums if i == j else 2 * (a[i] @ sums)
            means[i] += sums
            if i != j and ctx.needs_input_grad[1]:
                means[j] += _sums(value.T, a[i])
            if gradient is not None:
                if i != j:
                    _pull(kernel, gradient[j], slope.T * a_[i], x[j], x[i])
                _pull(kernel, gradient[i], slope.mul_(a_[j]), x[i], x[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(2 * a_[:, None]), 2 * means)
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        return *_scaled(cotangents[0], *ctx.saved_tensors), None, None, None


def _scaled(cotangent: Tensor, gradient: Tensor | None, means: Tensor) -> tuple[Tensor | None, Tensor]:
    """Gradients in the rows and in their weights."""
    return None if gradient is None else cotangent.to(gradient.dtype) * gradient, cotangent * means


def _sums(value: Tensor, weights: Tensor) -> Tensor:
    """sum_j value_ij w_j in float64."""
    return torch.cat([rows.double() @ weights for rows in value.split(SUMMED)])


def _pull(kernel: Kernel, gradient: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> None:
    """`Kernel.pull` in the dtype of the weights, in which near rows do not cancel."""
    exact = gradient if weights.dtype == gradient.dtype else torch.zeros_like(gradient, dtype=weights.dtype)
    kernel.pull(exact, weights, x.to(weights.dtype), y.to(weights.dtype))
    if exact is not gradient:
        gradient += exact


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
