"""One step of a Fréchet distance's population in the basis of an earlier one (`objectives._frechet_solver`)."""

import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from objectives._linalg import symmetric_product
from rdm.api import InputError, Sum

PROFIT = 21  # steps without a product of r^3 after which an eigendecomposition costs less than these
SAMPLE = 32  # rows that a bound is measured on
COARSE = 2**-8  # relative error of a product of bfloat16 numbers; three times what is measured


class Fit(NamedTuple):
    """The population's Gaussian fit, but for the covariance itself, by sums of n d over its rows y about the shift."""

    first: Tensor  # sum w y
    sums: Tensor  # sum w, sum w^2 and sum w |y|^2
    correction: int

    @classmethod
    def of(cls, moments: Sum, correction: int) -> "Fit":
        """From the moments, in d^2 reads of none but the diagonal."""
        return cls(moments.value[0], torch.stack([*moments.weight, moments.value[1:].trace()]), correction)

    def after(self, kept: float, rows: Tensor, weights: Tensor) -> "Fit":
        """With rows, whose weights are below 0 where they leave."""
        come = torch.stack(
            [weights.sum(), weights @ weights.abs(), weights @ torch.linalg.vector_norm(rows, dim=1).square()]
        )
        fade = self.sums.new_tensor([kept, kept**2, kept])
        return Fit(torch.addmv(self.first, rows.T, weights, beta=kept), self.sums * fade + come, self.correction)

    @property
    def mean(self) -> Tensor:
        """About the shift."""
        return self.first / self.mass

    @property
    def mass(self) -> Tensor:
        """Of all rows."""
        return self.sums[0]

    @property
    def scale(self) -> Tensor:
        """Of the covariance, 1 / (1 - correction / n)."""
        count = self.mass.square() / self.sums[1]
        if float(count) <= self.correction * (1 + 1e-9):
            raise InputError(f"a covariance with correction={self.correction} needs more rows; got {float(count):.3g}")
        return 1 / (1 - self.correction / count)

    @property
    def trace(self) -> Tensor:
        """Of the covariance."""
        return (self.sums[2] / self.mass - self.mean @ self.mean) * self.scale


class Found(NamedTuple):
    """(x - mu) (I - T) of the live rows, the overlap tr T C, P L P if it was taken, and the error's bound."""

    pull: Tensor
    overlap: Tensor
    product: Tensor | None
    bound: float


def without_product(moments: Tensor, mean: Tensor, mass: Tensor, masses: Tensor) -> Tensor:
    """P_ij = O_ij / (l_i + l_j), of moments of this mass and mean in the basis; some rows at a time stay near."""
    found = torch.empty_like(moments)
    for rows in blocks(len(found)):
        part = torch.addr(moments[rows], mean[rows], mean, alpha=-float(mass), out=found[rows])
        part[:, rows].diagonal().sub_(masses[rows])
        part.div_(masses[rows, None] + masses)
    return found


def blocks(length: int, size: int = 256) -> list[slice]:
    """So many rows at a time."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class Part:
    """P, and where it may be `coarse` P in bfloat16."""

    def __init__(self, value: Tensor, *, coarse: bool):
        self.value, self.coarse = value, coarse

    @cached_property
    def narrow(self) -> Tensor:
        """What may be coarse is multiplied by."""
        return self.value.bfloat16() if self.coarse else self.value

    def after(self, rows: Tensor, *, coarse: bool = True) -> Tensor:
        """The rows times P."""
        right = self.narrow if coarse else self.value
        return (rows.to(right.dtype) @ right).to(rows.dtype)


class Sizes(NamedTuple):
    """Of y P, y P^2 and y P^3 in the gradient, over that of the gradient; and of y P (P - before)."""

    first: float
    second: float
    third: float
    step: float

    @property
    def falling(self) -> float:
        """What the next power is of one."""
        return min(1.0, self.third / max(self.second, 1e-300))


class Moved(NamedTuple):
    """A population in the basis of an earlier one, and how far off its gradient may be."""

    basis: Tensor
    levels: Tensor
    centred: Tensor  # x - mu, the live rows
    y: Tensor  # the same in the basis
    first: Part  # P without the term P L P, "r r"
    masses: Tensor  # the levels times the mass, in the rows' type
    tolerance: float

    def plain(self, steps: int) -> Found | None:
        """Without the term P L P; None where it is wanted, and an eigendecomposition would come too early."""
        p, sizes = self.first.value, self._sizes(self.first)
        coarse, error = self._coarse(self.first, sizes.first, (0.5 + COARSE) * sizes.second)
        short = 2 * sizes.second + error <= self.tolerance
        bound = (2.0 if short else 0.5 + COARSE) * sizes.second + error
        if bound > self.tolerance and steps < PROFIT:
            return None
        pull = self._pull(self.first, (-1.0,) if short else (-1.0, 1.5), coarse=coarse)
        lengths = torch.linalg.vector_norm(p, dim=1).double().square()
        return Found(pull, (self.levels * (1 + p.diagonal().double() - lengths / 2)).sum(), None, bound)

    def improved(self, product: Tensor | None) -> Found:
        """By one fixed-point step from a product P L P, or where that is not enough two, the other one not coarse."""
        first, roots = self.first.value, self.masses.sqrt()
        p = self.first if product is None else self._without(product, coarse=False)
        sizes, bound = Sizes(0, 0, 0, 0), math.inf
        for narrow in (self.first.coarse, False):
            before, scaled = Part(p.value, coarse=narrow), p.value * roots
            scaled = scaled.bfloat16() if narrow else scaled
            product = symmetric_product(scaled, scaled.T).to(first.dtype)
            p = self._without(product, coarse=narrow)
            sizes = self._sizes(p, before)
            bound = sizes.step + sizes.third * sizes.falling + (2 * COARSE * sizes.second if narrow else 0.0)
            if bound <= self.tolerance:
                break
        assert product is not None
        coarse, error = self._coarse(p, sizes.first, bound)
        short = bound + error + sizes.third <= self.tolerance
        pull = self._pull(p, (-1.0, 1.0) if short else (-1.0, 1.0, -1.0), coarse=coarse)
        overlap = (self.levels * (1 + p.value.diagonal().double())).sum()
        return Found(pull, overlap, product, bound + error + (sizes.third if short else 0.0))

    def _without(self, product: Tensor, *, coarse: bool) -> Part:
        first, found = self.first.value, torch.empty_like(product)
        for rows in blocks(len(found)):
            sums = self.masses[rows, None] + self.masses
            torch.addcdiv(first[rows], product[rows], sums, value=-1, out=found[rows])
        return Part(found, coarse=coarse)

    def _sizes(self, p: Part, before: Part | None = None) -> Sizes:
        """On a sample of the rows; of the powers of P the second is taken to the features."""
        some = slice(None, None, max(1, len(self.y) // SAMPLE))
        y = self.y[some]
        first = p.after(y)
        second = p.after(first)
        rows = [y - first + second, second] + ([] if before is None else [second - before.after(first)])
        pull, *spread = (torch.cat(rows) @ self.basis.T).split(len(y))
        third = y[:0] if before is None else p.after(second)
        norms = torch.stack([each.norm() for each in (self.centred[some] - pull, second, first, third, *spread)])
        whole, own, one, three, two, *step = norms.double().clamp_min(1e-300).tolist()
        return Sizes(two * one / own / whole, two / whole, two * three / own / whole, step[0] / whole if step else 0.0)

    def _coarse(self, p: Part, size: float, bound: float) -> tuple[bool, float]:
        """Whether y P may be coarse beside other errors, and what comes to them."""
        coarse = p.coarse and bound + COARSE * size <= self.tolerance
        return coarse, COARSE * size if coarse else 0.0

    def _pull(self, p: Part, factors: tuple[float, ...], *, coarse: bool) -> Tensor:
        """The pull, x - mu - (y + a y P + b y P^2 + ...) H^T; higher powers are coarse."""
        term, total = p.after(self.y, coarse=coarse), self.y
        for factor in factors[:-1]:
            total = total.add(term, alpha=factor)
            term = p.after(term)
        return torch.addmm(self.centred, total.add(term, alpha=factors[-1]), self.basis.T, alpha=-1)


@lru_cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a processor has units for it, several times as fast as for float32."""
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
