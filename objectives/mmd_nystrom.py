"""Maximum mean discrepancy with the reference through landmarks."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._bandwidth import Bandwidth, bandwidths, radial
from objectives._discrepancy import above_zero
from objectives._kernels import Radial, cross_sum, self_sum
from rdm.api import (
    Count,
    Objective,
    Positive,
    Real,
    Samples,
    Seed,
    Traits,
    landmarks,
    objectives,
    squared_distances,
)

BLOCK = 2048  # reference rows embedded at a time
OWN = 30_000  # reference rows that the constant k_rr is taken over


class NystromTarget(NamedTuple):
    """The reference's mean embedding, frozen as coefficients on landmarks."""

    kernel: Radial
    landmarks: Tensor  # L d, about the reference's mean
    coefficients: Tensor  # L, float64, of any sign and sum
    squared_norm: Tensor  # (), |mu|^2 of the embedding that the coefficients give
    residual: Tensor  # (), k_rr - |mu|^2 >= 0: what the landmarks miss, no less than which the value can be


@objectives.register(
    "mmd_nystrom",
    examples=({"landmarks": 32}, {"landmarks": 12, "bandwidth": [2.0, 4.0], "method": "random"}),
)
@dataclass(frozen=True)
class NystromMMD(Objective):
    r"""Squared maximum mean discrepancy, exact within the population, with the whole reference through landmarks.

    .. math:: \sum_{ii'} a_i a_{i'} k(x_i, x_{i'}) - 2 \sum_{il} a_i \alpha_l k(x_i, z_l) + k_{rr}, \quad
              \alpha = (K_{zz} + \lambda I)^{-1} \sum_j b_j k(z, y_j)

    Source: "Representation Distribution Matching for One-Step Visual Generation" (2026), eq. 2 and 3. The landmarks z
    are k-means centres (20 of Lloyd's rounds on 200,000 rows at most) or rows drawn at random, `seed` decides; one set
    serves all bandwidths of a list. The embedding sees every reference row, and is solved for in float64 by Cholesky
    with ridge lambda = `ridge` k(0). The value is |mu_x - mu|^2 + residual, with mu the embedding on the landmarks and
    residual = k_rr - |mu|^2: its gradient is that of an exact MMD to mu. k_rr, a constant, is over 30,000 reference
    rows at most. With all rows as landmarks this is the biased `mmd` up to the ridge, and so it is where there are
    fewer rows than `landmarks`. Kernels and bandwidth are as for `mmd`.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        None (kernel units); biased upwards by (1 - E k)/n and by the residual, which does not vanish at identity.
    Cost:
        n (n/2 + L) d a step, whatever m; once L m d + L^3 / 3 in float64, and k-means.

    Raises:
        InputError: landmarks below 1; a ridge or bandwidth that is not positive; another method or kernel; "median"
        of a reference with more than half of its pairs equal.

    >>> import torch, rdm
    >>> x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    >>> round(rdm.distance("mmd_nystrom", x, y, bandwidth=1.0).item(), 4)  # 2 - 2 exp(-2)
    1.7293
    """

    landmarks: Count = 4096
    bandwidth: Bandwidth = "median"
    kernel: Literal["gaussian", "laplacian", "inverse_multiquadric", "rational_quadratic"] = "gaussian"
    method: Literal["k-means", "random"] = "k-means"
    alpha: Positive = 1.0
    ridge: Positive = 1e-6
    seed: Seed = 0

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(zero_at_identity=False, symmetric=False)

    def bind(self, reference: Real) -> tuple[Samples, NystromTarget]:
        """Rows about the reference's mean; the target is the reference's embedding on its landmarks."""
        statistic, held = Samples(reference.mean), reference.every("mmd_nystrom").held("mmd_nystrom", None)
        rows = statistic.measure(held.features, held.masses).value
        exact, weights = rows.double(), held.masses / held.masses.sum()
        kernel = radial(self.kernel, bandwidths(self.bandwidth, reference), self.alpha).fitted(rows, weights)
        # landmarks as the rows' dtype holds them, so that coefficients belong to what `distance` will see
        chosen = landmarks(exact, weights, self.landmarks, method=self.method, seed=self.seed).to(rows.dtype)
        points = chosen.double()
        gram = _values(kernel, points, points)
        embedded = _total(kernel, points, exact, weights)
        ridged = gram + self.ridge * kernel.at_zero * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        coefficients = torch.cholesky_solve(embedded[:, None], torch.linalg.cholesky(ridged))[:, 0]
        squared_norm = coefficients @ gram @ coefficients
        own = held.held("mmd_nystrom", OWN, seed=self.seed)
        sampled = statistic.measure(own.features, own.masses)
        norm = kernel.origin + self_sum(kernel, sampled.value, sampled.weight / sampled.mass, diagonal=True)
        return statistic, NystromTarget(kernel, chosen, coefficients, squared_norm, (norm - squared_norm).clamp_min(0))

    def distance(self, summary: Any, target: NystromTarget, *, generator: Any = None) -> Tensor:
        """Repulsion within the population, attraction to the embedding, and k_rr; sums are from the kernel's origin."""
        weights = summary.weight / summary.mass
        repulsion = self_sum(target.kernel, summary.value, weights, diagonal=True)
        attraction = cross_sum(target.kernel, summary.value, weights, target.landmarks, target.coefficients)
        constant = target.kernel.origin * (1 - 2 * target.coefficients.sum()) + target.squared_norm + target.residual
        return above_zero(repulsion - 2 * attraction + constant)


def _values(kernel: Radial, x: Tensor, y: Tensor) -> Tensor:
    """k(x_i, y_j) itself."""
    squared = squared_distances(x, y, coinciding=True)
    return kernel.profile(squared)[0].add_(kernel.origin)


def _total(kernel: Radial, points: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """sum_j b_j k(z_l, y_j) for each landmark, rows in blocks."""
    pieces = zip(rows.split(BLOCK), weights.split(BLOCK), strict=True)
    total = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for block, mass in pieces:
        total += _values(kernel, points, block) @ mass
    return total
