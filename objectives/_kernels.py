"""Kernels, and their weighted double sums streamed in tiles.

A kernel gives a tile of values with their slopes, and pulls rows along those slopes. The double sum never holds the
n x m matrix and forms the gradient in the sweep that forms the value: two matrix products in all. Tiles are float32
where the rows are, their sums float64, with float64 weights: a mean of float32 weights is off by 1e-8 of the kernel,
the value by 1e-4 of itself. A distance of measures of mass 1 does not see constants, so radial kernels are counted from
k(0) where distances are below the bandwidth and from 0 where they are above, which keeps the digits of either
(test: test_float32_values_beside_float64_for_any_bandwidth). Kernels with a cusp at 0 see near pairs in float64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rdm.api import squared_distances

TILE = 1024, 2048  # rows of either side in a tile: 8 MiB in float32, whatever n and m
SUMMED = 128  # rows of a tile that are converted to float64 at a time, so that they stay in cache
NEAR = 2**15  # epsilons of the squared distance from the mean below which a pair's own is too rough for a cusp


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

    def fitted(self, rows: Tensor, weights: Tensor) -> "Kernel":
        """The same kernel, knowing the reference's rows about their mean and their weights, of sum 1."""
        return self


class Radial(Kernel):
    """A kernel k(s) of the squared distance s."""

    centred: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    singular: ClassVar[bool] = False  # dk/ds is infinite at s = 0; there the pull is 0

    def fitted(self, rows: Tensor, weights: Tensor) -> "Radial":  # noqa: D102
        return self

    @property
    @abstractmethod
    def at_zero(self) -> float:
        """k(0)."""

    @property
    def origin(self) -> float:
        """The constant that `profile` leaves out: k(0), less what is counted from 0."""
        return self.at_zero

    @abstractmethod
    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """k(s) - origin and dk/ds, elementwise; finite, and dk/ds = 0 at s = 0 where singular."""

    def tile(self, x: Tensor, y: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:
        """In the rows' dtype, or in float64 where a cusp needs it."""
        exact = x.dtype == torch.float64
        squared = squared_distances(x, y, coinciding=self.singular and exact)
        if self.singular and not exact and _nearby(squared, x, y, same=same):
            return self.tile(x.double(), y.double(), same=same)
        if same:  # 0 only up to rounding otherwise; the pull of a row on itself must vanish exactly
            squared.fill_diagonal_(0.0)
        value, slope = self.profile(squared)
        return value, slope.fill_diagonal_(0.0) if same else slope

    def pull(self, gradient: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> None:  # noqa: D102
        gradient.addcmul_(weights.sum(1)[:, None], x, value=2).addmm_(weights, y, alpha=-2)


@dataclass(frozen=True)
class _Scaled(Radial):
    """A sum over bandwidths, each 1 at 0."""

    bandwidths: tuple[float, ...]

    @property
    def at_zero(self) -> float:
        return float(len(self.bandwidths))


@dataclass(frozen=True)
class _Exponential(_Scaled):
    """Counted from 1 only where most pairs are nearer than the half: next to 1, float32 takes what is 3e-8 for 0."""

    spread: float = 0.0  # mean squared distance within the reference

    @property
    def origin(self) -> float:
        return float(sum(self.wide(bandwidth) for bandwidth in self.bandwidths))

    def fitted(self, rows: Tensor, weights: Tensor) -> "_Exponential":
        norms = torch.linalg.vector_norm(rows, dim=1).double()
        return replace(self, spread=2 * float(weights @ norms.square()))

    @abstractmethod
    def wide(self, bandwidth: float) -> bool:
        """Whether a pair at the mean distance has more than half of k(0)."""


@dataclass(frozen=True)
class Gaussian(_Exponential):
    """Sum over bandwidths of exp(-s / 2 sigma^2); octaves of one bandwidth share its exponential."""

    def wide(self, bandwidth: float) -> bool:  # noqa: D102
        return self.spread < 2 * math.log(2) * bandwidth**2

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        widest, *others = sorted(self.bandwidths, reverse=True)
        rate = -0.5 / widest**2
        term, kernel = self._exponential(squared, widest)
        if not others:
            return (kernel.clone() if term is None else term), kernel.mul_(rate)
        value, slope = (kernel if term is None else term).clone(), kernel * rate
        squarings = 0.0  # since the last exponential: each doubles its relative error
        for bandwidth in others:
            more = math.log2(-0.5 / bandwidth**2 / rate)
            rate, squarings = -0.5 / bandwidth**2, squarings + more
            if more in (0.0, 2.0, 4.0) and squarings <= 4:
                for _ in range(int(more)):
                    term = None if term is None else (term + 2).mul_(term)  # (1 + t)^2 - 1
                    kernel.square_()
                term = term if self.wide(bandwidth) else None
            else:
                squarings = 0.0
                term, kernel = self._exponential(squared, bandwidth)
            value += kernel if term is None else term
            slope.add_(kernel, alpha=rate)
        return value, slope

    def _exponential(self, squared: Tensor, bandwidth: float) -> tuple[Tensor | None, Tensor]:
        """The kernel less 1, where it is counted from 1, and the kernel."""
        power = squared * (-0.5 / bandwidth**2)
        return (torch.expm1(power) if self.wide(bandwidth) else None), power.exp_()


@dataclass(frozen=True)
class Laplacian(_Exponential):
    """Sum over bandwidths of exp(-sqrt(s) / sigma)."""

    singular: ClassVar[bool] = True

    def wide(self, bandwidth: float) -> bool:  # noqa: D102
        return self.spread < (math.log(2) * bandwidth) ** 2

    def profile(self, squared: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        distance = squared.sqrt()
        value, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for bandwidth in self.bandwidths:
            power = distance / -bandwidth
            value += torch.expm1(power) if self.wide(bandwidth) else power.exp()
            slope.add_(power.exp_(), alpha=-0.5 / bandwidth)
        return value, slope.div_(distance).masked_fill_(distance == 0, 0.0)


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """Sum over bandwidths of (1 + s / sigma^2)^(-1/2)."""

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
class RationalQuadratic(_Scaled):
    """Sum over bandwidths of (1 + s / 2 alpha sigma^2)^(-alpha)."""

    alpha: float = 1.0

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
    """sum_ij a_i b_j k(x_i, y_j) as a float64 scalar, differentiable in x and a; y and b are constants.

    Radial kernels are counted from their origin. What overflows in float32 (rows beyond 1e19) is done in float64.
    """
    total = _CrossSum.apply(x.double() if kernel.exact else x, a, y, b, kernel)
    if x.dtype != torch.float64 and not bool(torch.isfinite(total)):
        return _CrossSum.apply(x.double(), a, y, b, kernel)
    return total


def self_sum(kernel: Kernel, x: Tensor, a: Tensor, *, diagonal: bool) -> Tensor:
    """sum_ij a_i a_j k(x_i, x_j), with or without i = j, as a float64 scalar, differentiable; see `cross_sum`."""
    total = _SelfSum.apply(x.double() if kernel.exact else x, a, kernel, diagonal)
    if x.dtype != torch.float64 and not bool(torch.isfinite(total)):
        return _SelfSum.apply(x.double(), a, kernel, diagonal)
    return total


class _CrossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
        y, a_, b_ = y.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        means = torch.zeros_like(a)  # sum_j b_j k(x_i, y_j)
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for i in _blocks(len(x), TILE[0]):
            for j in _blocks(len(y), TILE[1]):
                value, slope = kernel.tile(x[i], y[j], same=False)
                means[i] += _sums(value, b[j])
                if gradient is not None:
                    _pull(kernel, gradient[i], slope.mul_(b_[j]), x[i], y[j])
        ctx.save_for_backward(None if gradient is None else gradient.mul_(a_[:, None]), means)
        return a @ means

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        return *_scaled(cotangents[0], *ctx.saved_tensors), None, None, None


class _SelfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, kernel: Kernel, diagonal: bool) -> Tensor:
        a_, means = a.to(x.dtype), torch.zeros_like(a)  # sum_j a_j k(x_i, x_j), whole where it is asked for
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
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        return *_scaled(cotangents[0], *ctx.saved_tensors), None, None


def _scaled(cotangent: Tensor, gradient: Tensor | None, means: Tensor) -> tuple[Tensor | None, Tensor]:
    """Gradients in the rows and in their weights."""
    return None if gradient is None else cotangent.to(gradient.dtype) * gradient, cotangent * means


def _nearby(squared: Tensor, x: Tensor, y: Tensor, *, same: bool) -> bool:
    """Whether some pair is so near that its squared distance has lost the digits that a cusp needs."""
    if same:
        squared.fill_diagonal_(torch.inf)
    largest = x.square().sum(1).max() + y.square().sum(1).max()
    return bool(squared.amin() < NEAR * torch.finfo(x.dtype).eps * largest)


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
