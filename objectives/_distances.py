"""Pairwise distances whose small values are exact."""

from typing import Any

import torch
from torch import Tensor

from rdm.api import NonFiniteError, usual
from rdm.api import squared_distances as by_products


def squared_distances(x: Tensor, y: Tensor, *, exact_small: bool, same: int | None = None) -> Tensor:
    """|x_i - y_j|^2 by one matrix product; with `exact_small`, pairs that cancel in it are formed again by difference.

    Roots need that: at equal rows the product leaves about eps |x|^2, whose root is 1e-8 in float64, 3e-4 in float32.
    The diagonal from column `same` on is that of rows with themselves, 0.
    """
    squared = by_products(x, y)
    if same is not None:
        squared.diagonal(same).zero_()
    if not exact_small:
        return squared
    doubtful = 1e4 * torch.finfo(x.dtype).eps
    norms = x.square().sum(1)[:, None], y.square().sum(1)
    near = (squared < doubtful * norms[0]) | (squared < doubtful * norms[1])
    if same is not None:
        near.diagonal(same).fill_(False)
    if not usual(near.any(), False):
        return squared
    i, j = near.nonzero(as_tuple=True)
    for some, other in zip(i.split(4096), j.split(4096), strict=True):
        squared[some, other] = (x[some] - y[other]).square().sum(1)
    return squared


def widened(x: Tensor) -> Tensor:
    """The rows in float64; their gradient comes back in their own dtype, or is refused where that cannot hold it."""
    return _Widened.apply(x) if x.dtype != torch.float64 else x


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return x.double()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        largest = cotangents[0].abs().max()
        if usual((largest > torch.finfo(ctx.dtype).max) & (largest < torch.inf), False):
            raise NonFiniteError(f"a gradient of {float(largest):.1e} is beyond {ctx.dtype}; scale the features down")
        return cotangents[0].to(ctx.dtype)
