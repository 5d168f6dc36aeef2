"""The squared discrepancy of two weighted sets under a kernel, which MMD, energy distance, KID and CMMD share."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._distances import widened
from objectives._kernels import Kernel, cross_sum, self_sum
from rdm.api import InputError, Real, Samples

Estimator = Literal["biased", "unbiased"]


class KernelTarget(NamedTuple):
    """The reference's rows under a kernel whose bandwidth is fitted."""

    kernel: Kernel
    rows: Tensor  # m d, about the reference's mean where the kernel is translation invariant
    weights: Tensor  # m, summing to 1
    repulsion: Tensor  # (), the reference's own double sum


def kernel_target(kernel: Kernel, reference: Real, estimator: Estimator) -> tuple[Samples, KernelTarget]:
    """The rows to compare, and the reference's with their own double sum."""
    statistic = Samples(reference.mean if kernel.centred else torch.zeros_like(reference.mean))
    held = reference.held("a kernel distance")
    measured = statistic.measure(held.features, held.masses)
    rows = measured.value.double() if kernel.exact else measured.value
    weights = measured.weight / measured.mass
    kernel = kernel.fitted(rows, weights)
    return statistic, KernelTarget(kernel, rows, weights, _within(kernel, rows, weights, estimator))


def discrepancy(summary: Any, target: KernelTarget, estimator: Estimator) -> Tensor:
    """Repulsion within the population, attraction to the reference, and the reference's constant."""
    weights = summary.weight / summary.mass
    rows = widened(summary.value) if target.kernel.exact else summary.value
    repulsion = _within(target.kernel, rows, weights, estimator)
    squared = repulsion - 2 * cross_sum(target.kernel, rows, weights, target.rows, target.weights)
    squared = squared + target.repulsion
    return above_zero(squared) if estimator == "biased" else squared


def above_zero(squared: Tensor) -> Tensor:
    """The value, 0 where rounding put it below; the gradient is kept."""
    return squared + (squared.clamp_min(0) - squared).detach()


def _within(kernel: Kernel, rows: Tensor, weights: Tensor, estimator: Estimator) -> Tensor:
    if estimator == "biased":
        return self_sum(kernel, rows, weights, diagonal=True)
    pairs = 1 - weights.square().sum()
    if bool(pairs <= 1e-12):
        raise InputError('estimator "unbiased" needs at least 2 rows of positive weight a side; got 1; use "biased"')
    return self_sum(kernel, rows, weights, diagonal=False) / pairs
