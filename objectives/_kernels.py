"""Kernels: their values and slopes, elementwise."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from objectives._pairs import Kernel, Radial, Strip, parts
from objectives._sides import Side

CLOSE = 0.8  # of k(0), from which on values lose digits beside it: a quarter of those that are 0 at half


@dataclass(frozen=True)
class _Scaled(Radial):
    """A sum over bandwidths, each 1 at 0."""

    bandwidths: tuple[float, ...]

    @property
    def at_zero(self) -> float:
        return float(len(self.bandwidths))

    @property
    def finest(self) -> float:
        return min(self.bandwidths) ** 2


@dataclass(frozen=True)
class _Exponential(_Scaled):
    """Counted from 1 only where most pairs are near: next to 1, float32 takes what is 3e-8 for 0, and expm1 is slow."""

    spread: float = 0.0  # mean squared distance within the reference

    @property
    def origin(self) -> float:
        return float(sum(self.wide(bandwidth) for bandwidth in self.bandwidths))

    def fitted(self, rows: Tensor, weights: Tensor) -> "_Exponential":
        norms = torch.linalg.vector_norm(rows, dim=1).double()
        return replace(self, spread=2 * float(weights @ norms.square()))

    @abstractmethod
    def wide(self, bandwidth: float) -> bool:
        """Whether a pair at the mean distance has more than `CLOSE` of k(0)."""


@dataclass(frozen=True)
class Gaussian(_Exponential):
    """Sum over bandwidths of exp(-s / 2 sigma^2); octaves of one bandwidth share its exponential."""

    def wide(self, bandwidth: float) -> bool:  # noqa: D102
        return self.spread < -2 * math.log(CLOSE) * bandwidth**2

    def values(self, squared: Tensor) -> Tensor:  # noqa: D102
        terms = ((squared * (-0.5 / bandwidth**2)).exp_() for bandwidth in self.bandwidths)
        total = next(terms)
        for term in terms:
            total += term
        return total

    @property
    def slope_unit(self) -> float:  # noqa: D102
        return -0.5 / max(self.bandwidths) ** 2

    @property
    def in_place(self) -> bool:  # noqa: D102
        return self.shared

    @property
    def shared(self) -> bool:  # noqa: D102
        return len(self.bandwidths) == 1 and not self.wide(self.bandwidths[0])

    def profile(self, squared: Tensor) -> Tensor:  # noqa: D102
        widest, *others = sorted(self.bandwidths, reverse=True)
        slope = squared.mul_(self.slope_unit)
        if not others:
            return self._exponential(slope, widest)[0]
        power = slope.clone()
        term, kernel = self._exponential(power.clone(), widest)
        value, rate = term.clone(), 1.0
        slope.copy_(kernel)
        squarings = 0.0  # since the last exponential: each doubles its relative error
        for bandwidth in others:
            before, rate = rate, (widest / bandwidth) ** 2
            more = math.log2(rate / before)
            squarings += more
            if more in (0.0, 2.0, 4.0) and squarings <= 4:
                for _ in range(int(more)):
                    if term is not kernel:
                        term = (term + 2).mul_(term)  # (1 + t)^2 - 1
                    kernel.square_()
                term = term if self.wide(bandwidth) else kernel
            else:
                squarings = 0.0
                term, kernel = self._exponential(power * rate, bandwidth)
            value += term
            slope.add_(kernel, alpha=rate)
        return value

    def _exponential(self, power: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        """The kernel, less 1 where it is counted from 1, and the kernel itself, in place of the power."""
        if not self.wide(bandwidth):
            return power, power.exp_()
        term = torch.expm1(power)
        return term, torch.add(term, 1, out=power)


@dataclass(frozen=True)
class Laplacian(_Exponential):
    """Sum over bandwidths of exp(-sqrt(s) / sigma)."""

    singular: ClassVar[bool] = True

    def wide(self, bandwidth: float) -> bool:  # noqa: D102
        return self.spread < (math.log(CLOSE) * bandwidth) ** 2

    def profile(self, squared: Tensor) -> Tensor:  # noqa: D102
        distance, slope = squared.sqrt(), squared.zero_()
        value = torch.zeros_like(distance)
        for bandwidth in self.bandwidths:
            power = distance / -bandwidth
            value += torch.expm1(power) if self.wide(bandwidth) else power.exp()
            slope.add_(power.exp_(), alpha=-0.5 / bandwidth)
        slope.div_(distance)
        return value


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """Sum over bandwidths of (1 + s / sigma^2)^(-1/2)."""

    def profile(self, squared: Tensor) -> Tensor:  # noqa: D102
        apart, slope = squared.clone(), squared.zero_()
        value = torch.zeros_like(apart)
        for bandwidth in self.bandwidths:
            ratio = apart / bandwidth**2
            base = ratio + 1
            root = base.sqrt()
            value.sub_(ratio.div_(base + root))  # 1/sqrt(q) - 1 = -(q - 1) / (q + sqrt(q))
            slope.sub_(root.mul_(base).reciprocal_(), alpha=0.5 / bandwidth**2)
        return value


@dataclass(frozen=True)
class RationalQuadratic(_Scaled):
    """Sum over bandwidths of (1 + s / 2 alpha sigma^2)^(-alpha)."""

    alpha: float = 1.0

    def profile(self, squared: Tensor) -> Tensor:  # noqa: D102
        apart, slope = squared.clone(), squared.zero_()
        value = torch.zeros_like(apart)
        for bandwidth in self.bandwidths:
            ratio = apart / (2 * self.alpha * bandwidth**2)
            power = torch.log1p(ratio).mul_(-self.alpha)
            value += torch.expm1(power)
            slope.addcdiv_(power.exp_(), ratio.add_(1), value=-0.5 / bandwidth**2)
        return value


@dataclass(frozen=True)
class Power(Radial):
    """-s^(exponent / 2), the kernel of the energy distance; positive definite on measures of mass 0."""

    exponent: float
    singular: ClassVar[bool] = True

    @property
    def at_zero(self) -> float:  # noqa: D102
        return 0.0

    @property
    def value_unit(self) -> float:  # noqa: D102
        return -1.0

    @property
    def slope_unit(self) -> float:  # noqa: D102
        return -self.exponent / 2

    @property
    def in_place(self) -> bool:  # noqa: D102
        return self.exponent == 1

    def profile(self, squared: Tensor) -> Tensor:  # noqa: D102
        if self.exponent == 1:
            return squared.sqrt_()
        value = squared.pow(self.exponent / 2)
        torch.div(value, squared, out=squared)
        return value

    def slopes(self, left: Tensor) -> Tensor:  # noqa: D102
        return left.reciprocal_() if self.exponent == 1 else left


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
        base = torch.matmul(x, y.T).div_(self._divisor(x)).add_(self.coef)
        return base.pow_(self.degree)

    def strips(self, x: Side, i: slice, y: Side, j: slice, *, same: bool, out: Tensor) -> Iterator[Strip]:  # noqa: D102
        torch.mm(x.rows[i], y.rows[j].T, out=out)
        for rows in parts(out):
            base = out[rows].div_(self._divisor(x.rows)).add_(self.coef)
            yield Strip(rows, base.pow(self.degree), partial(base.pow_, self.degree - 1), False, False)

    def pulled(self, reach: Tensor, x: Tensor, drawn: Tensor, times: Tensor | float) -> Tensor:  # noqa: D102
        return drawn.mul_(times * self.degree / self._divisor(x))

    def diagonal(self, rows: Tensor) -> Tensor:  # noqa: D102
        squares = torch.linalg.vector_norm(rows, dim=1).double().square()
        return (squares / self._divisor(rows) + self.coef) ** self.degree

    def _divisor(self, rows: Tensor) -> float:
        return rows.shape[1] if self.gamma is None else 1 / self.gamma
