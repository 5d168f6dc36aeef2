"""Maximum mean discrepancy."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._kernels import Gaussian, Kernel, cross_sum, self_sum, squared_distances
from rdm.errors import InputError
from rdm.objective import Objective, Traits
from rdm.reference import Reference
from rdm.registry import objectives
from rdm.statistic import Samples

Bandwidth = float | tuple[float, ...] | list[float] | Literal["median"]


class KernelTarget(NamedTuple):
    """The reference's rows under a kernel whose bandwidth is fitted."""

    kernel: Kernel
    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1
    repulsion: Tensor  # (), the reference's own double sum


@objectives.register("mmd", examples=({"bandwidth": [1.0, 3.0]}, {"estimator": "unbiased"}, {"bandwidth": "median"}))
@dataclass(frozen=True)
class MMD(Objective):
    r"""Squared maximum mean discrepancy between both sides' kernel mean embeddings.

    .. math:: \sum_{ii'} a_i a_{i'} k(x_i, x_{i'}) - 2 \sum_{ij} a_i b_j k(x_i, y_j)
              + \sum_{jj'} b_j b_{j'} k(y_j, y_{j'})

    Source: Gretton et al. (2012), eq. 5 (biased, a V-statistic) and eq. 3 (unbiased: the sums within a side leave out
    i = i' and are divided by 1 - sum a_i^2). The weights a, b are normalised. kernel gaussian:
    k(x, y) = exp(-|x - y|^2 / 2 sigma^2), summed over a list of bandwidths sigma. bandwidth "median": the square root
    of the median squared pairwise distance of the reference (10,000 rows at most), fitted once.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        None (kernel units); with one bandwidth at most 2. The biased value exceeds the population's by
        (1 - E k)(1/n + 1/m); its gradient is that of the unbiased one but for a factor (n - 1)/n on the repulsion.
    Cost:
        n (n/2 + m) d in time, tiles of 8 MiB in memory; m^2 d once. float32 features stay in float32.

    Raises:
        InputError: "unbiased" with fewer than 2 effective rows on a side; a bandwidth that is not positive; "median"
        of a reference with more than half of its pairs equal.

    >>> import torch, rdm
    >>> x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    >>> round(rdm.distance("mmd", x, y, bandwidth=1.0).item(), 4)  # 2 - 2 exp(-2)
    1.7293
    """

    kernel: Literal["gaussian"] = "gaussian"
    bandwidth: Bandwidth = "median"
    estimator: Literal["biased", "unbiased"] = "biased"

    def __post_init__(self) -> None:  # noqa: D105
        if self.estimator not in ("biased", "unbiased"):
            raise InputError(f'estimator must be "biased" or "unbiased"; got {self.estimator!r}')
        if self.kernel not in KERNELS:
            raise InputError(f"kernel must be one of {', '.join(KERNELS)}; got {self.kernel!r}")
        if self.bandwidth == "median":
            return
        scales = self.bandwidth if isinstance(self.bandwidth, list | tuple) else [self.bandwidth]
        if not scales or not all(isinstance(s, int | float) and 0 < s < float("inf") for s in scales):
            raise InputError(
                f'bandwidth must be a positive number, a list of them, or "median"; got {self.bandwidth!r}'
            )

    @property
    def traits(self) -> Traits:  # noqa: D102
        biased = self.estimator == "biased"
        return Traits(biased, zero_at_identity=biased, symmetric=self.bandwidth != "median", plug_in=biased)

    def bind(self, reference: Reference) -> tuple[Samples, KernelTarget]:
        """Rows about the reference's mean; the target is the reference with its fitted bandwidth and own sum."""
        statistic = Samples(reference.mean)
        rows = statistic.measure(reference.features, reference.weights)
        kernel = KERNELS[self.kernel](self._bandwidths(reference))
        weights = rows.weight / rows.mass
        return statistic, KernelTarget(kernel, rows.value, weights, self._within(kernel, rows.value, weights))

    def distance(self, summary: Any, target: KernelTarget, *, generator: Any = None) -> Tensor:
        """Repulsion within the population, attraction to the reference, and the reference's constant."""
        weights = summary.weight / summary.mass
        repulsion = self._within(target.kernel, summary.value, weights)
        attraction = cross_sum(target.kernel, summary.value, weights, target.rows, target.weights)
        squared = repulsion - 2 * attraction + target.repulsion
        return squared + (squared.clamp_min(0) - squared).detach() if self.traits.nonnegative else squared

    def _within(self, kernel: Kernel, rows: Tensor, weights: Tensor) -> Tensor:
        if self.estimator == "biased":
            return self_sum(kernel, rows, weights, diagonal=True)
        pairs = 1 - weights.square().sum()
        if float(pairs) <= 1e-12:
            raise InputError(
                'estimator "unbiased" needs at least 2 rows of positive weight a side; got 1; use "biased"'
            )
        return self_sum(kernel, rows, weights, diagonal=False) / pairs

    def _bandwidths(self, reference: Reference) -> tuple[float, ...]:
        if self.bandwidth == "median":
            return (median_distance(reference),)
        scales = self.bandwidth if isinstance(self.bandwidth, list | tuple) else [self.bandwidth]
        return tuple(float(scale) for scale in scales)


KERNELS = {"gaussian": Gaussian}


def median_distance(reference: Reference, *, rows: int = 10_000) -> float:
    """Square root of the median squared distance over the pairs i < j of at most `rows` reference rows."""
    sample = reference.subset(rows)
    x = Samples(reference.mean).measure(sample.features, sample.weights).value
    if len(x) < 2:
        raise InputError('bandwidth "median" needs a reference of at least 2 rows; got 1; give a number')
    block = 1024
    pieces = []
    for start in range(0, len(x), block):
        squared = squared_distances(x[start : start + block], x[start:])
        upper = torch.ones_like(squared, dtype=torch.bool).triu(1)
        pieces.append(squared[upper])
    median = float(torch.cat(pieces).median())
    if median <= 0:
        raise InputError('bandwidth "median" is 0: more than half of the reference\'s pairs are equal; give a number')
    return median**0.5
