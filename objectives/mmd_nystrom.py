"""Maximum mean discrepancy with the reference through landmarks."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._bandwidth import Bandwidth, bandwidths, radial
from objectives._discrepancy import WHOLE, above_zero, projected
from objectives._pairs import Radial
from objectives._sides import Side
from objectives._sums import cross_sum, self_sum
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

BLOCK = 256  # reference rows embedded at a time
SAMPLE = 65_536  # reference rows that landmarks are found among, or `landmarks` where that is more
OWN = 1024  # reference rows on one side of k_rr, where there are more rows than `WHOLE`


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
    are rows drawn at random or k-means centres, of 65,536 reference rows at most (or `landmarks`), drawn uniformly:
    20 of Lloyd's rounds where there are at most 8,192, about as many batches of 8,192 otherwise. `seed` decides; one
    set serves all bandwidths of a list. The embedding sees every reference row, in chunks, and is solved for in float64
    by Cholesky with ridge lambda = `ridge` k(0). The value is |mu_x - mu|^2 + residual, with mu the embedding on the
    landmarks and residual = k_rr - |mu|^2: its gradient is that of an exact MMD to mu. k_rr, a constant, is exact up to
    8,192 reference rows; of more, pairs of 1,024 of them with all give it to about sd(k) / 700. With
    all rows as landmarks this is the biased `mmd` up to the ridge, and so it is where there are fewer rows than
    `landmarks`. Kernels and bandwidth are as for `mmd`.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        None (kernel units); biased upwards by (1 - E k)/n and by the residual, which does not vanish at identity.
    Cost:
        n (n/2 + L) d a step, whatever m; once L m d + L^3 / 3 in float64, and k-means;
        memory L^2 and 65,536 rows, whatever m.

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
        whole = reference.every("mmd_nystrom")
        statistic = Samples(_rounded(whole.mean))
        sample = whole.held("mmd_nystrom", max(SAMPLE, self.landmarks), seed=self.seed)
        rows = statistic.measure(sample.features, sample.masses).value
        kernel = radial(self.kernel, bandwidths(self.bandwidth, reference), self.alpha)
        kernel = kernel.fitted(rows, sample.masses / sample.masses.sum())
        # landmarks as the rows' dtype holds them, so that coefficients belong to what `distance` will see
        chosen = landmarks(rows, sample.masses, self.landmarks, method=self.method, seed=self.seed)
        own = None if len(rows) <= WHOLE else sample.held("mmd_nystrom", OWN, seed=self.seed)
        some = rows[:0] if own is None else statistic.measure(own.features, own.masses).value
        points, mass = torch.cat([chosen, some]).double(), whole.masses.sum()
        embedded = whole.total(lambda y, b: _embedded(kernel, points, statistic.measure(y, b).value, b / mass))
        coefficients, squared_norm = self._solved(kernel, chosen.double(), embedded[: len(chosen)])
        if own is None:
            norm = kernel.origin + self_sum(kernel, rows, sample.masses / mass, diagonal=True)
        else:
            norm = _norm(kernel, some, own.masses / mass, embedded[len(chosen) :], (whole.masses / mass).square().sum())
        return statistic, NystromTarget(kernel, chosen, coefficients, squared_norm, (norm - squared_norm).clamp_min(0))

    def _solved(self, kernel: Radial, points: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients, and the squared norm of the embedding that they give."""
        gram = torch.cat([_values(kernel, block, points) for block in points.split(BLOCK)])
        ridged = gram.clone()
        ridged.diagonal().add_(self.ridge * kernel.at_zero)
        coefficients = torch.cholesky_solve(embedded[:, None], torch.linalg.cholesky(ridged))[:, 0]
        return coefficients, coefficients @ gram @ coefficients

    def distance(self, summary: Any, target: NystromTarget, *, generator: Any = None) -> Tensor:
        """Repulsion within the population, attraction to the embedding, and k_rr; sums are from the kernel's origin."""
        weights = summary.weight / summary.mass
        repulsion = self_sum(target.kernel, summary.value, weights, diagonal=True)
        attraction = cross_sum(target.kernel, summary.value, weights, Side(target.landmarks), target.coefficients)
        constant = target.kernel.origin * (1 - 2 * target.coefficients.sum()) + target.squared_norm + target.residual
        return above_zero(repulsion - 2 * attraction + constant)


def _values(kernel: Radial, x: Tensor, y: Tensor) -> Tensor:
    """k(x_i, y_j) itself."""
    return kernel.values(squared_distances(x, y, coinciding=kernel.singular))


def _embedded(kernel: Radial, points: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """sum_j b_j k(z_l, y_j) for each point, rows in blocks, in float64."""
    total = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for block, mass in zip(rows.split(BLOCK), weights.split(BLOCK), strict=True):
        total += mass @ _values(kernel, block.double(), points)
    return total


def _norm(kernel: Radial, some: Tensor, mass: Tensor, embedded: Tensor, squares: Tensor) -> Tensor:
    """k_rr from what some rows, of weights `mass`, make with all (`embedded`); the diagonal is exact."""
    own = mass.sum().square() - mass.square().sum()
    within = self_sum(kernel, some, mass, diagonal=False) + kernel.origin * own
    across = mass @ embedded - within - kernel.at_zero * mass.square().sum()
    return (1 - squares) * projected(across, within, mass, torch.ones_like(squares)) + squares * kernel.at_zero


def _rounded(mean: Tensor) -> Tensor:
    """The first 24 bits: a shift that is the same whatever the order in which the mean was summed."""
    fraction, exponent = torch.frexp(mean)
    return torch.ldexp((fraction * 2**24).round(), exponent - 24)
