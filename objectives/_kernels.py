"""Kernels: tiles of values with their slopes, and how rows are pulled along those.

A distance of measures of mass 1 does not see constants, so radial kernels are counted from k(0) where distances are
below the bandwidth and from 0 where they are above, which keeps the digits of either
(test: test_float32_values_beside_float64_for_any_bandwidth). Kernels with a cusp at 0 see near pairs in float64.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import squared_distances, usual

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

    @abstractmethod
    def diagonal(self, rows: Tensor) -> Tensor:
        """k(x_i, x_i) as `tile` counts it, in float64."""

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

    def values(self, squared: Tensor) -> Tensor:
        """k(s) itself, elementwise."""
        return self.profile(squared)[0].add_(self.origin)

    def diagonal(self, rows: Tensor) -> Tensor:  # noqa: D102
        return torch.full((len(rows),), self.at_zero - self.origin, dtype=torch.float64, device=rows.device)

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

    def values(self, squared: Tensor) -> Tensor:  # noqa: D102
        terms = ((squared * (-0.5 / bandwidth**2)).exp_() for bandwidth in self.bandwidths)
        total = next(terms)
        for term in terms:
            total += term
        return total

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
    """(gamma x.y + coef)^degree, of the rows as they are; powers of large numbers cancel, hence float64."""

    degree: int = 3
    gamma: float | None = None  # 1/d
    coef: float = 1.0
    centred: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel of all pairs."""
        return self._base(x, y).pow_(self.degree)

    def tile(self, x: Tensor, y: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:  # noqa: D102
        base = self._base(x, y)
        below = base.pow(self.degree - 1)
        return base.mul_(below), below.mul_(self.degree / self._divisor(x))

    def pull(self, gradient: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> None:  # noqa: D102
        gradient.addmm_(weights, y)

    def diagonal(self, rows: Tensor) -> Tensor:  # noqa: D102
        squares = torch.linalg.vector_norm(rows, dim=1).double().square()
        return (squares / self._divisor(rows) + self.coef) ** self.degree

    def _base(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y.T).div_(self._divisor(x)).add_(self.coef)

    def _divisor(self, rows: Tensor) -> float:
        return rows.shape[1] if self.gamma is None else 1 / self.gamma


def _nearby(squared: Tensor, x: Tensor, y: Tensor, *, same: bool) -> bool:
    """Whether some pair is so near that its squared distance has lost the digits that a cusp needs."""
    if same:
        squared.fill_diagonal_(torch.inf)
    largest = x.square().sum(1).max() + y.square().sum(1).max()
    return usual(squared.amin() < NEAR * torch.finfo(x.dtype).eps * largest, False)
