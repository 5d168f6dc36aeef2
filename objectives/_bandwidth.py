"""Bandwidths: what is accepted, the median heuristic, and radial kernels by name."""

from typing import Literal

import torch
from torch import Tensor

from objectives._kernels import Gaussian, InverseMultiquadric, Laplacian, Radial, RationalQuadratic, squared_distances
from rdm.errors import InputError
from rdm.reference import Reference
from rdm.statistic import Samples

Bandwidth = float | tuple[float, ...] | list[float] | Literal["median"]
RADIAL = {
    "gaussian": Gaussian,
    "laplacian": Laplacian,
    "inverse_multiquadric": InverseMultiquadric,
    "rational_quadratic": RationalQuadratic,
}


def check_bandwidth(bandwidth: Bandwidth) -> None:
    """Refuse what is neither a positive number, a list of them nor "median"."""
    if bandwidth == "median":
        return
    scales = bandwidth if isinstance(bandwidth, list | tuple) else [bandwidth]
    if not scales or not all(isinstance(s, int | float) and 0 < s < float("inf") for s in scales):
        raise InputError(f'bandwidth must be a positive number, a list of them, or "median"; got {bandwidth!r}')


def bandwidths(bandwidth: Bandwidth, reference: Reference) -> tuple[float, ...]:
    """The numbers that a checked bandwidth stands for, under a reference."""
    if bandwidth == "median":
        return (median_distance(reference),)
    scales = bandwidth if isinstance(bandwidth, list | tuple) else [bandwidth]
    return tuple(float(scale) for scale in scales)


def radial(name: str, scales: tuple[float, ...], alpha: float) -> Radial:
    """The radial kernel called `name`; alpha is used by the rational quadratic one alone."""
    return RationalQuadratic(scales, alpha) if name == "rational_quadratic" else RADIAL[name](scales)


def present(reference: Reference) -> Reference:
    """The reference without its rows of weight 0."""
    keep = reference.weights > 0
    return Reference(reference.features[keep], reference.weights[keep], reference.origin)


def median_distance(reference: Reference, *, rows: int = 10_000) -> float:
    """Square root of the median squared distance over the pairs i < j of at most `rows` reference rows.

    A pair weighs b_i b_j. Where weights differ, which needs a sort, at most 0.4 `rows` are used.
    """
    sample = present(reference)
    equal = bool((sample.weights == sample.weights[0]).all())
    sample = sample.subset(rows if equal else 2 * rows // 5)
    x = Samples(reference.mean).measure(sample.features, sample.weights).value
    if len(x) < 2:
        raise InputError('bandwidth "median" needs a reference of at least 2 rows; got 1; give a number')
    count = len(x) * (len(x) - 1) // 2
    values = torch.empty(count, dtype=x.dtype, device=x.device)
    pairs = torch.empty(0 if equal else count, dtype=torch.float64, device=x.device)
    block, done = 1024, 0
    for start in range(0, len(x), block):
        squared = squared_distances(x[start : start + block], x[start:])
        upper = torch.ones_like(squared, dtype=torch.bool).triu(1)
        part = slice(done, done := done + int(upper.sum()))
        values[part] = squared[upper]
        if not equal:
            pairs[part] = torch.outer(sample.weights[start : start + block], sample.weights[start:])[upper]
    median = float(_lower_median(values) if equal else _weighted_median(values, pairs))
    if median <= 0:
        raise InputError('bandwidth "median" is 0: more than half of the reference\'s pairs are equal; give a number')
    return median**0.5


def _lower_median(values: Tensor) -> Tensor:
    """torch.median, on the CPU without its copy; the order of the values is lost."""
    if values.device.type != "cpu":
        return values.median()
    middle = (len(values) - 1) // 2
    values.numpy().partition(middle)
    return values[middle]


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """The least value up to which half of the weight lies; the lower median where weights are equal."""
    values, order = values.sort()
    levels = weights[order].cumsum(0)
    return values[torch.searchsorted(levels, levels[-1:] / 2).clamp_max(len(values) - 1)]
