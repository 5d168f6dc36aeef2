"""Kernels, and their weighted double sums streamed in tiles.

A kernel gives a tile of values with their slopes, and pulls rows along those slopes. The double sum never holds the
n x m matrix and forms the gradient in the sweep that forms the value: two matrix products in all. Radial kernels are
counted from k(0): a distance of measures of mass 1 does not see constants, and k - k(0) keeps its digits in float32
where the bandwidth is far above the distances (test: test_wide_bandwidth_keeps_its_digits). Slopes come from k itself,
for the sake of bandwidths far below them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rdm.distances import squared_distances

TILE = 1024, 2048  # rows of either side in a tile: 8 MiB in float32, whatever n and m


class Kernel(ABC):
    """A symmetric kernel k(x, y), up to a constant."""

    centred: ClassVar[bool]  # translation invariant, so that rows may be taken about the reference's mean
    exact: ClassVar[bool]  # computed in float64 whatever the rows' dtype

    @abstractmethod
    def tile(self, x: Tensor, y: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:
        """Values and slopes of the pairs of rows of x and y; `same` says that both are the same rows."""

    @abstractmethod
    def pull(self, gradient: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> None:
        """gradient_i += sum_j dk(x_i, y_j)/dx_i, in place, where `weights` are slopes times the weights of y."""


class Radial(Kernel):
    """A kernel k(s) of the squared distance s."""

    centred: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    singular: ClassVar[bool] = False  # dk/ds is infinite at s = 0; there the pull is 0

    @property
    @abstractmethod
    def at_zero(self) -> float:
        """k(0), which `profile` leaves out."""

    @abstractmethod
    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """k(s) - k(0) and dk/ds, elementwise; finite, and dk/ds = 0 at s = 0 where singular."""

    def tile(self, x: Tensor, y: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:  # noqa: D102
        squared = squared_distances(x, y, coinciding=self.singular)
        if same:  # 0 only up to rounding otherwise; the pull of a row on itself must vanish exactly
            squared.fill_diagonal_(0.0)
        value, slope = self.profile(squared)
        return value, slope.fill_diagonal_(0.0) if same else slope

    def pull(self, gradient: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> None:  # noqa: D102
        gradient.addcmul_(weights.sum(1)[:, None], x, value=2).addmm_(weights, y, alpha=-2)


@dataclass(frozen=True)
class Gaussian(Radial):
    """Sum over bandwidths of exp(-s / 2 sigma^2); octaves of one bandwidth share its exponential."""

    bandwidths: tuple[float, ...]

    @property
    def at_zero(self) -> float:  # noqa: D102
        return float(len(self.bandwidths))

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        widest, *others = sorted(self.bandwidths, reverse=True)
        rate = -0.5 / widest**2
        power = squared * rate
        term, kernel = torch.expm1(power), power.exp_()
        if not others:
            return term, kernel.mul_(rate)
        value, slope = term.clone(), kernel * rate
        for bandwidth in others:
            squarings = math.log2(-0.5 / bandwidth**2 / rate)
            rate = -0.5 / bandwidth**2
            if squarings in (0.0, 2.0, 4.0):
                for _ in range(int(squarings)):
                    term = (term + 2).mul_(term)  # (1 + t)^2 - 1
                    kernel.square_()
            else:
                power = squared * rate
                term, kernel = torch.expm1(power), power.exp_()
            value += term
            slope.add_(kernel, alpha=rate)
        return value, slope


@dataclass(frozen=True)
class Laplacian(Radial):
    """Sum over bandwidths of exp(-sqrt(s) / sigma)."""

    bandwidths: tuple[float, ...]
    singular: ClassVar[bool] = True

    @property
    def at_zero(self) -> float:  # noqa: D102
        return float(len(self.bandwidths))

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        distance = squared.sqrt()
        value, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for bandwidth in self.bandwidths:
            power = distance / -bandwidth
            value += torch.expm1(power)
            slope.add_(power.exp_(), alpha=-0.5 / bandwidth)
        return value, slope.div_(distance).masked_fill_(distance == 0, 0.0)


@dataclass(frozen=True)
class InverseMultiquadric(Radial):
    """Sum over bandwidths of (1 + s / sigma^2)^(-1/2)."""

    bandwidths: tuple[float, ...]

    @property
    def at_zero(self) -> float:  # noqa: D102
        return float(len(self.bandwidths))

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        value, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for bandwidth in self.bandwidths:
            ratio = squared / bandwidth**2
            base = ratio + 1
            root = base.sqrt()
            value.sub_(ratio.div_(base + root))  # 1/sqrt(q) - 1 = -(q - 1) / (q + sqrt(q))
            slope.sub_(root.mul_(base).reciprocal_(), alpha=0.5 / bandwidth**2)
        return value, slope


@dataclass(frozen=True)
class RationalQuadratic(Radial):
    """Sum over bandwidths of (1 + s / 2 alpha sigma^2)^(-alpha)."""

    bandwidths: tuple[float, ...]
    alpha: float = 1.0

    @property
    def at_zero(self) -> float:  # noqa: D102
        return float(len(self.bandwidths))

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        value, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for bandwidth in self.bandwidths:
            ratio = squared / (2 * self.alpha * bandwidth**2)
            power = torch.log1p(ratio).mul_(-self.alpha)
            value += torch.expm1(power)
            slope.addcdiv_(power.exp_(), ratio.add_(1), value=-0.5 / bandwidth**2)
        return value, slope


@dataclass(frozen=True)
class Power(Radial):
    """-s^(exponent / 2), the kernel of the energy distance; positive definite on measures of mass 0."""

    exponent: float
    singular: ClassVar[bool] = True

    @property
    def at_zero(self) -> float:  # noqa: D102
        return 0.0

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        value = (squared.sqrt() if self.exponent == 1 else squared.pow(self.exponent / 2)).neg_()
        return value, (value / squared).mul_(self.exponent / 2).masked_fill_(squared == 0, 0.0)


@dataclass(frozen=True)
class Polynomial(Kernel):
    """(x.y / d + 1)^3, of the rows as they are; cubes of large numbers cancel, hence float64."""

    centred: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def tile(self, x: Tensor, y: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:  # noqa: D102
        base = torch.matmul(x, y.T).div_(x.shape[1]).add_(1)
        square = base.square()
        return base.mul_(square), square.mul_(3 / x.shape[1])

    def pull(self, gradient: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> None:  # noqa: D102
        gradient.addmm_(weights, y)


def cross_sum(kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """sum_ij a_i b_j k(x_i, y_j) as a float64 scalar, differentiable in x only; y, a and b are constants.

    Radial kernels are counted from k(0). What overflows in float32 (rows beyond 1e19) is done again in float64.
    """
    total = _CrossSum.apply(x.double() if kernel.exact else x, a, y, b, kernel)
    if x.dtype != torch.float64 and not bool(torch.isfinite(total)):
        return _CrossSum.apply(x.double(), a, y, b, kernel)
    return total


def self_sum(kernel: Kernel, x: Tensor, a: Tensor, *, diagonal: bool) -> Tensor:
    """sum_ij a_i a_j k(x_i, x_j), with or without i = j, as a float64 scalar, differentiable in x; see `cross_sum`."""
    total = _SelfSum.apply(x.double() if kernel.exact else x, a, kernel, diagonal)
    if x.dtype != torch.float64 and not bool(torch.isfinite(total)):
        return _SelfSum.apply(x.double(), a, kernel, diagonal)
    return total


class _CrossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
        y, a_, b_ = y.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for i in _blocks(len(x), TILE[0]):
            for j in _blocks(len(y), TILE[1]):
                value, slope = kernel.tile(x[i], y[j], same=False)
                total += a[i].double() @ (value @ b_[j]).double()
                if gradient is not None:
                    kernel.pull(gradient[i], slope.mul_(b_[j]), x[i], y[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(a_[:, None]))
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
                value, slope = kernel.tile(x[i], x[j], same=i == j)
                if i == j and not diagonal:
                    value.fill_diagonal_(0.0)
                    slope.fill_diagonal_(0.0)
                pairs = a[i].double() @ (value @ a_[j]).double()
                total += pairs if i == j else 2 * pairs
                if gradient is not None:
                    if i != j:
                        kernel.pull(gradient[j], slope.T * a_[i], x[j], x[i])
                    kernel.pull(gradient[i], slope.mul_(a_[j]), x[i], x[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(2 * a_[:, None]))
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return cotangents[0].to(gradient.dtype) * gradient, None, None, None


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
