"""The squared discrepancy of two weighted sets under a kernel, which MMD, energy distance, KID and CMMD share."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._distances import widened
from objectives._pairs import Kernel
from objectives._sides import Products, Side
from objectives._sums import cross_sum, self_sum
from rdm.api import UNDIVIDED, InputError, Objective, Portion, Real, Samples, usual

Estimator = Literal["biased", "unbiased"]
WHOLE = 8192  # reference rows up to which their own double sum is exact
OWN = 2048  # of more rows so many, drawn uniformly, stand on one side of it


class KernelTarget(NamedTuple):
    """The reference's rows under a kernel whose bandwidth is fitted."""

    kernel: Kernel
    side: Side  # rows m d, about the reference's mean where the kernel is translation invariant
    weights: Tensor  # m, summing to 1
    repulsion: Tensor  # (), the reference's own double sum

    @property
    def rows(self) -> Tensor:
        """The rows "m d"."""
        return self.side.rows


class Pairwise(Objective):
    """What the distances by a kernel share: they are sums over pairs, of which a part has its share of the tiles."""

    @property
    def divisible(self) -> bool:  # noqa: D102
        return True

    def distance(self, summary: Any, target: KernelTarget, *, generator: Any = None) -> Tensor:
        """The one part of one."""
        return self.part(summary, target, UNDIVIDED)


def kernel_target(
    kernel: Kernel, reference: Real, estimator: Estimator, products: Products = "float32"
) -> tuple[Samples, KernelTarget]:
    """The rows to compare, and the reference's with their own double sum."""
    statistic = Samples(reference.mean if kernel.centred else torch.zeros_like(reference.mean))
    held = reference.held("a kernel distance")
    measured = statistic.measure(held.features, held.masses)
    rows = measured.value.double() if kernel.exact else measured.value
    weights = measured.weight / measured.mass
    kernel = kernel.fitted(rows, weights)
    side = Side.of(rows, products)
    return statistic, KernelTarget(kernel, side, weights, _own(kernel, side, weights, estimator))


def discrepancy(summary: Any, target: KernelTarget, estimator: Estimator, portion: Portion) -> Tensor:
    """Repulsion within the population, attraction to the reference, and the reference's constant, in the first part."""
    weights = summary.weight / summary.mass
    rows = widened(summary.value) if target.kernel.exact else summary.value
    side = target.side.like(rows.detach())
    repulsion = _within(target.kernel, rows, weights, estimator, side, portion)
    across = cross_sum(target.kernel, rows, weights, target.side, target.weights, portion.mirrored, side)
    squared = repulsion - 2 * across
    squared = squared + target.repulsion if portion.number == 0 else squared
    return above_zero(squared) if estimator == "biased" and portion == UNDIVIDED else squared


def above_zero(squared: Tensor) -> Tensor:
    """The value, 0 where rounding put it below; the gradient is kept."""
    return squared + (squared.clamp_min(0) - squared).detach()


def _own(kernel: Kernel, side: Side, weights: Tensor, estimator: Estimator) -> Tensor:
    """The reference's own double sum; of more than `WHOLE` rows an estimate whose diagonal is exact."""
    if len(side.rows) <= WHOLE:
        return _within(kernel, side.rows, weights, estimator, side)
    across = mean_of_pairs(kernel, side, weights)
    if estimator == "unbiased":
        return across
    squares = weights.square()
    return (1 - squares.sum()) * across + squares @ kernel.diagonal(side.rows)


def mean_of_pairs(kernel: Kernel, side: Side, weights: Tensor) -> Tensor:
    """An estimate of sum_{i != j} b_i b_j k(y_i, y_j) / sum_{i != j} b_i b_j, from `OWN` of the rows beside all."""
    rows, order = side.rows, torch.randperm(len(side.rows), generator=torch.Generator().manual_seed(0))
    some, others = order.to(rows.device).tensor_split([OWN])
    mass = weights[some]
    across = cross_sum(kernel, rows[some], mass, side.like(rows[others]), weights[others])
    within = self_sum(kernel, rows[some], mass, diagonal=False, side=side.like(rows[some]))
    return projected(across, within, mass, weights.sum())


def projected(across: Tensor, within: Tensor, mass: Tensor, whole: Tensor) -> Tensor:
    """The mean over pairs of all rows from sums over pairs of some rows, of weights `mass`: with others, and within.

    Twice the mean over pairs of one of these rows with any, less that within: without bias over the draw of the rows
    where weights are equal, and without its first-order error (the Hoeffding projections cancel), so that the standard
    error is about sd(k) sqrt(2) / n of n rows in place of one over sqrt(n) (test: test_binding.py).
    """
    squares = mass.square().sum()
    own, any_pair = mass.sum().square() - squares, mass.sum() * whole - squares
    return 2 * (across + within) / any_pair - within / own


def _within(
    kernel: Kernel,
    rows: Tensor,
    weights: Tensor,
    estimator: Estimator,
    side: Side,
    portion: Portion = UNDIVIDED,
) -> Tensor:
    if estimator == "biased":
        return self_sum(kernel, rows, weights, diagonal=True, portion=portion, side=side)
    pairs = 1 - weights.square().sum()
    if usual(pairs <= 1e-12, False):
        raise InputError('estimator "unbiased" needs at least 2 rows of positive weight a side; got 1; use "biased"')
    return self_sum(kernel, rows, weights, diagonal=False, portion=portion, side=side) / pairs
