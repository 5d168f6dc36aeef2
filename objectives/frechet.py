"""Fréchet distance of Gaussian fits."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._frechet_solver import FrechetSolver
from objectives._linalg import above_rounding, graded_factor, mean_and_covariance, range_basis, symmetric_product
from rdm.api import Moments, Objective, Real, Sum, Traits, objectives, usual

UNSEEN = 1e-3  # of the distance, which a population without some of the reference's directions may be too far by


class GaussianTarget(NamedTuple):
    """The reference's Gaussian fit, about its own mean."""

    mean: Tensor  # d
    factor: Tensor  # d r, F F^T = covariance
    trace: Tensor  # (), trace of the covariance


@objectives.register("frechet", examples=({}, {"correction": 0}, {"correction": "fd_loss"}))
@dataclass(frozen=True)
class Frechet(Objective):
    r"""Squared Fréchet distance of the Gaussian fits of both sides.

    .. math:: |\mu_g - \mu_r|^2 + \operatorname{tr} C_g + \operatorname{tr} C_r
              - 2 \operatorname{tr} (C_r^{1/2} C_g C_r^{1/2})^{1/2}

    Source: Dowson and Landau (1982), eq. 16; as FID, Heusel et al. (2017), eq. 6; as a loss with a population apart
    from the batch, Yang et al. (2026), "Representation Fréchet Loss", section 3. The trace is that of
    (F^T C_g F)^{1/2} with C_r = F F^T, in float64, where both have the same non-zero eigenvalues. The gradient is
    closed-form, no autograd through an eigendecomposition: with T = F (F^T C_g F)^{-1/2} F^T the Gaussian transport
    map, dD/dC_g = I - T, so that equal rows are pulled along x_i -> mu_r + T (x_i - mu_g).

    Where C_g is singular on the reference's directions (a population of at most d rows), value and gradient are
    exact on the rank that there is (the gradient is the one of least norm). A warning says so, once, if the reference's
    variance where C_g has none, by which more rows could lower the value, is over a thousandth of it.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Squared feature distance. `correction=1` divides covariances by 1 - 1/n with Kish's effective n, `correction=0`
        gives the biased covariance; "fd_loss" the biased one of the generated side and the other of the reference, as
        Yang et al. (2026) mix them with their moving average of moments. The value is biased upwards by O(1/n).
    Cost:
        n d^2 + d^3, memory d^2, in float64; the eigenproblem is n x n, not d x d, where 2 n + 16 <= d. With a memory
        and a tolerance about 5 n d^2, and d^3 now and then (`rdm.Population`).

    Raises:
        InputError: an effective number of rows not above `correction`, on either side.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [2.0]])
    >>> rdm.distance("frechet", x + 3, x).item()
    9.0
    """

    correction: Literal[0, 1, "fd_loss"] = 1

    @property
    def traits(self) -> Traits:  # noqa: D102
        mixed = self.correction == "fd_loss"
        return Traits(plug_in=self.correction != 1, zero_at_identity=not mixed, symmetric=not mixed)

    def bind(self, reference: Real) -> tuple[Moments, GaussianTarget]:
        """Moments about the reference's mean; the target is the reference's Gaussian fit."""
        statistic = Moments(reference.mean)
        summary = reference.summarize(statistic, user="frechet")
        assert isinstance(summary, Sum)
        mean, covariance = mean_and_covariance(summary, correction=0 if self.correction == 0 else 1)
        return statistic, GaussianTarget(mean, graded_factor(covariance), covariance.trace())

    def distance(self, summary: Any, target: GaussianTarget, *, generator: Any = None) -> Tensor:
        """The squared distance of the Gaussian fit of `summary` from the target's."""
        squared = _SquaredDistance.apply(summary.value, summary.weight, target, 1 if self.correction == 1 else 0)
        return squared + (squared.clamp_min(0) - squared).detach()  # rounding below 0; the gradient is kept

    def solver(self, tolerance: float) -> FrechetSolver:
        """Follows the moments in the eigenbasis of an earlier step (`objectives._frechet_solver`)."""
        return FrechetSolver(tolerance, 1 if self.correction == 1 else 0)


class _SquaredDistance(torch.autograd.Function):
    """The distance from moments, with gradient dD/dC = I - T and, at fixed C, dD/dmu = 2 (mu_g - mu_r).

    C = s (M / w - mu mu^T) of the moments (w mu, M), with s = 1 / (1 - correction / n) (test: test_frechet.py). The
    mass w divides the moments and, by n = w^2 / q, sets s, in which dD/ds = tr C (I - T) / s.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, target: GaussianTarget, correction: int) -> Tensor:
        summary = Sum(value, weight)
        mean, covariance = mean_and_covariance(summary, correction=correction)
        trace = covariance.trace()
        mass, count = summary.mass, summary.count
        form, basis = _form(covariance, target.factor, count)
        del covariance  # eigh takes four times as much
        eigenvalues, vectors = torch.linalg.eigh(form)
        vectors = vectors if basis is None else basis @ vectors
        del form
        keep, lacking = above_rounding(eigenvalues), None
        if len(keep) < len(target.factor.T) or not usual(keep.all()):
            lacking = _variance(target.factor, vectors[:, ~keep]) if basis is None else target.trace
            eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
        roots = eigenvalues.sqrt()
        overlap = roots.sum()
        distance = (mean - target.mean).square().sum() + trace + target.trace - 2 * overlap
        if lacking is not None and usual(lacking > UNSEEN * distance):
            warnings.warn(
                f"frechet: the population's covariance is singular on the reference's {len(target.factor.T)} "
                "directions (fewer rows than dimensions, or collapsed features); exact on the rank that there is, but "
                "biased upwards: give more items (in training a larger population, or a memory)",
                stacklevel=2,
            )
        ctx.save_for_backward((target.factor @ vectors).div_(roots.sqrt()), mean, mean - target.mean, trace - overlap)
        ctx.mass, ctx.count, ctx.scale = mass, count, 1 / (1 - correction / count)
        ctx.of_count = -(trace - overlap) * ctx.scale * correction / count**2
        return distance

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, None, None]:
        half, mean, shift, excess = ctx.saved_tensors  # T = half half^T, excess = tr C (I - T)
        gradient = half.new_empty(len(mean) + 1, len(mean))
        slope = symmetric_product(half, half.T, out=gradient[1:]).neg_()
        slope.diagonal().add_(1)
        slope.mul_(ctx.scale)
        sloped = slope @ mean
        gradient[0] = 2 * (shift - sloped)
        gradient.div_(ctx.mass)
        of_value = 2 * mean @ shift - mean @ sloped + excess  # the gradient in the moments, times these
        of_mass = 2 * ctx.count / ctx.mass * ctx.of_count - of_value / ctx.mass
        of_squares = -((ctx.count / ctx.mass) ** 2) * ctx.of_count
        return gradient.mul_(cotangents[0]), torch.stack([of_mass, of_squares]) * cotangents[0], None, None


def _variance(factor: Tensor, vectors: Tensor) -> Tensor:
    """The reference's variance on F v, where the population has none: all that the distance can fall by, filled in.

    With S their span the distance is tr P C_r P of it and the distance on the complement, to which no population of
    the same law there is nearer (test: test_frechet.py).
    """
    span, _ = torch.linalg.qr(factor @ vectors)
    return (factor.T @ span).square().sum()


def _form(covariance: Tensor, factor: Tensor, count: Tensor) -> tuple[Tensor, Tensor | None]:
    """F^T C F; of few rows its form on its range, and a basis of that.

    n rows (Kish's `count`) give a rank below n, and the r x r form on an orthonormal basis of the range, r = n, has
    the same non-zero eigenvalues as the n x n Gram form of the rows (FastFID, Mathiasen and Hvilshoj 2020), without the
    rows. With unequal weights n may be less than the rank, which the basis finds out.
    """

    def product(columns: Tensor) -> Tensor:
        return factor.T @ (covariance @ (factor @ columns))

    if usual(2 * (count.ceil() + 8) <= factor.shape[1], False):
        rows = math.ceil(float(count))
        basis = range_basis(product, factor, rank=rows)
        if basis is not None:
            return basis.T @ product(basis), basis
    return symmetric_product(factor.T, covariance @ factor), None
