"""Rows as they are, pairwise distances, and the median of them in a reference."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.real import Real
from rdm.matching.statistic import Cat, Statistic, Summary, same_dimension
from rdm.numbers import Float


@dataclass(frozen=True)
class Samples(Statistic):
    """The rows themselves, minus `shift`: what kernels, sorting and transport plans work on.

    Subtracting the reference's mean changes no distance and saves the squared distances from cancelling in float32
    (at mean 30 and spread 0.05 they are wrong by a tenth without it). The shift keeps its float64 digits: float32 rows
    lose its leading part first, which is exact where it matters, and then the rest.
    """

    shift: Float[Tensor, " d"]
    kind: ClassVar[type[Summary]] = Cat

    def measure(self, features: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Cat:  # noqa: D102
        same_dimension(features, self.shift)
        leading = self.shift.to(features.dtype)
        rest = (self.shift - leading).to(features.dtype)
        return Cat((features - leading).sub_(rest), weights)


def squared_distances(x: Tensor, y: Tensor, *, coinciding: bool = False) -> Tensor:
    """|x_i - y_j|^2 by one matrix product; centre both sides first, or float32 cancels.

    With `coinciding`, what is within rounding of 0 is exactly 0, as a kernel with a cusp there needs: rounding is at
    most 4 epsilon (|x|^2 + |y|^2) measured in float32, and 13 at d = 768, 45 at d = 8192 in float64.
    """
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    squared = torch.addmm(norms, x, y.T, alpha=-2)
    if not coinciding:
        return squared.clamp_min_(0)
    rounding = (16 + x.shape[1] / 64) * torch.finfo(x.dtype).eps
    return squared.masked_fill_(squared <= norms.mul_(rounding), 0.0)


def median_distance(reference: Real, *, rows: int = 10_000) -> float:
    """Square root of the median squared distance over the pairs i < j of at most `rows` reference rows.

    A pair weighs b_i b_j. Where weights differ, which needs a sort, at most 0.4 `rows` are used.
    """
    user = 'bandwidth "median"'
    sample = reference.held(user, rows)
    equal = bool((sample.masses == sample.masses[0]).all())
    sample = sample if equal else reference.held(user, 2 * rows // 5)
    x, masses = Samples(reference.mean).measure(sample.features, sample.masses).value, sample.masses
    if len(x) < 2:
        raise InputError('bandwidth "median" needs a reference of at least 2 rows; got 1; give a number')
    count = len(x) * (len(x) - 1) // 2
    values = torch.empty(count, dtype=x.dtype, device=x.device)
    pairs = torch.empty(0 if equal else count, dtype=torch.float64, device=x.device)
    block, done = 1024, 0
    for start in range(0, len(x), block):
        some, stop = x[start : start + block], start + block
        squared = squared_distances(some, x[start:])
        upper = torch.ones_like(squared[:, : len(some)], dtype=torch.bool).triu(1)
        for columns, chosen in ((slice(start, stop), upper), (slice(stop, None), slice(None))):
            part = squared[:, columns.start - start : None if columns.stop is None else columns.stop - start][chosen]
            span = slice(done, done := done + part.numel())
            values[span] = part.flatten()
            if not equal:
                pairs[span] = torch.outer(masses[start:stop], masses[columns])[chosen].flatten()
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
