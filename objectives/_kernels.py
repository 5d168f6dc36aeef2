"""Kernels of the squared distance, and their weighted double sums streamed in tiles.

A kernel is a frozen dataclass with one method, `profile(s) -> (k, dk/ds)`, of the squared distance s. The double sum
never holds the n x m matrix and forms the gradient in the sweep that forms the value: two matrix products in all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE = 1024, 2048  # rows of either side in a tile: 8 MiB in float32, whatever n and m


class Kernel(ABC):
    """A radial kernel k(s) of the squared distance s."""

    @abstractmethod
    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel and its derivative in s, elementwise; both finite at s = 0."""


@dataclass(frozen=True)
class Gaussian(Kernel):
    """Sum over bandwidths of exp(-s / 2 sigma^2)."""

    bandwidths: tuple[float, ...]

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        value, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for bandwidth in self.bandwidths:
            rate = -0.5 / bandwidth**2
            term = torch.exp(squared * rate)
            value += term
            slope.add_(term, alpha=rate)
        return value, slope


def cross_sum(kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """sum_ij a_i b_j k(x_i, y_j) as a float64 scalar, differentiable in x only; y, a and b are constants."""
    return _CrossSum.apply(x, a, y, b, kernel)


def self_sum(kernel: Kernel, x: Tensor, a: Tensor, *, diagonal: bool) -> Tensor:
    """sum_ij a_i a_j k(x_i, x_j), with or without i = j, as a float64 scalar, differentiable in x."""
    return _SelfSum.apply(x, a, kernel, diagonal)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 by one matrix product; centre both sides first, or float32 cancels."""
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_min_(0)


class _CrossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
        y, a_, b_ = y.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for i in _blocks(len(x), TILE[0]):
            for j in _blocks(len(y), TILE[1]):
                value, slope = kernel.profile(squared_distances(x[i], y[j]))
                total += a[i].double() @ (value @ b_[j]).double()
                if gradient is not None:
                    _pull(gradient[i], slope.mul_(b_[j]), x[i], y[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(2 * a_[:, None]))
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return cotangents[0].to(gradient.dtype) * gradient, None, None, None, None


class _SelfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, kernel: Kernel, diagonal: bool) -> Tensor:
        a_ = a.to(x.dtype)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for i in _blocks(len(x), TILE[0]):
            for j in _blocks(len(x), TILE[0]):
                if j.start < i.start:
                    continue  # the kernel is symmetric: each pair of blocks once
                value, slope = kernel.profile(squared_distances(x[i], x[j]))
                if i == j:
                    # squared distances of a row to itself are 0 only up to rounding; the weight must vanish exactly
                    at_zero, _ = kernel.profile(torch.zeros((), dtype=x.dtype, device=x.device))
                    value.fill_diagonal_(float(at_zero) if diagonal else 0.0)
                    slope.fill_diagonal_(0.0)
                pairs = a[i].double() @ (value @ a_[j]).double()
                total += pairs if i == j else 2 * pairs
                if gradient is not None:
                    if i != j:
                        _pull(gradient[j], slope.T * a_[i], x[j], x[i])
                    _pull(gradient[i], slope.mul_(a_[j]), x[i], x[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(4 * a_[:, None]))
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return cotangents[0].to(gradient.dtype) * gradient, None, None, None


def _pull(gradient: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> None:
    """gradient_i += sum_j weight_ij (x_i - y_j), in place."""
    gradient.addcmul_(weight.sum(1)[:, None], x).addmm_(weight, y, alpha=-1)


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
