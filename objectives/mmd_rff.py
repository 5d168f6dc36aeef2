"""Maximum mean discrepancy through random Fourier features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from objectives._bandwidth import Bandwidth, bandwidths, is_fitted, scales
from rdm.api import (
    Count,
    Float,
    InputError,
    Objective,
    Real,
    Samples,
    Seed,
    Statistic,
    Sum,
    Summary,
    Traits,
    objectives,
)

BLOCK = 2**19  # angles measured at a time: 2 MiB in float32, which stay in cache


class FourierTarget(NamedTuple):
    """The reference's mean features, and what a mean over frequencies is multiplied by."""

    mean: Tensor  # 2 P
    scale: float  # number of bandwidths / P


@dataclass(frozen=True)
class FourierMean(Statistic):
    """Weighted sums of cos(w.(x - shift)) - 1 and sin(w.(x - shift)) over P frequencies w: value (2 P,), float64.

    Counting the cosine from 1 changes no difference of means and keeps its digits where the bandwidth is wide.
    """

    shift: Float[Tensor, " d"]
    frequencies: Float[Tensor, "p d"]
    kind: ClassVar[type[Summary]] = Sum

    def measure(self, features: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Sum:  # noqa: D102
        count, largest = len(self.frequencies), weights.max()
        value, halves = self.frequencies.new_zeros(2 * count), (self.frequencies.T / 2).to(features.dtype)
        size = next((k for k in (512, 256, 128) if k * count <= BLOCK), 64)  # of which a reference's chunks are made
        shares = (weights / torch.where(largest > 0, largest, 1.0)).to(features.dtype)
        centred = Samples(self.shift).measure(features, weights).value
        for rows, share in zip(centred.split(size), shares.split(size), strict=True):
            half = rows @ halves
            sine = half.sin()
            value = value + torch.cat([share @ sine.square() * -2, share @ (sine * half.cos()) * 2]).double()
        value = largest * value
        return Sum(value, torch.stack([weights.sum(), weights.square().sum()]))

    def translated(self, summary: Summary, shift: Tensor) -> Sum:
        """Every frequency's sum turns by its angle, and is the same, bit for bit, where that is 0."""
        angle = self.frequencies @ shift.to(self.frequencies)
        (cosines, sines), turn, mass = summary.value.chunk(2), angle.sin(), summary.mass
        less = -2 * (angle / 2).sin().square()  # cos - 1
        moved = cosines + (cosines + mass) * less - sines * turn, sines + sines * less + (cosines + mass) * turn
        return Sum(torch.cat(moved), summary.weight)


@objectives.register(
    "mmd_rff",
    examples=(
        {"features": 128},
        {"features": 256, "bandwidth": [2.0, 3.0], "orthogonal": True},
        {"features": 256, "kernel": "laplacian", "bandwidth": 2.0},
    ),
)
@dataclass(frozen=True)
class RandomFourierMMD(Objective):
    r"""Squared maximum mean discrepancy with both sides through random Fourier features.

    .. math:: \frac{1}{P} \sum_{\omega} \Big| \sum_i a_i e^{\mathrm{i} \omega \cdot x_i}
              - \sum_j b_j e^{\mathrm{i} \omega \cdot y_j} \Big|^2

    Source: Rahimi and Recht (2007), with the paired cosine and sine of Sutherland and Schneider (2015), eq. 4: P =
    features / 2 frequencies. The value is the mean squared difference of both sides' characteristic functions, and in
    the mean over frequencies exactly the biased `mmd` of the kernel: its error falls as 1 / sqrt(features). Frequencies
    are z t / sigma with z standard normal and t = 1 (gaussian), 1 / |g| (laplacian, so that they are multivariate
    Cauchy) or |g| (inverse_multiquadric), g standard normal; several bandwidths share the frequencies out in turn, and
    the kernels are summed. `orthogonal=True` draws z in blocks of d orthogonal directions (Yu et al. 2016), which
    lowers the error where the bandwidth is wide. Frequencies are drawn once, from `seed`.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        None (kernel units); biased upwards as `mmd` is. A statistic that adds up: chunks, ranks, averages over time
        cost `features` numbers.
    Cost:
        n features d / 2 in time and n features in memory, whatever m; m features d / 2 once.

    Raises:
        InputError: features not a multiple of twice the number of bandwidths; a bandwidth that is not positive;
        "median" of a reference with more than half of its pairs equal.

    >>> import torch, rdm
    >>> x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    >>> round(rdm.distance("mmd_rff", x, y, bandwidth=1.0, features=100_000).item(), 1)  # 2 - 2 exp(-2) = 1.7293
    1.7
    """

    features: Count = 4096
    bandwidth: Bandwidth = "median"
    kernel: Literal["gaussian", "laplacian", "inverse_multiquadric"] = "gaussian"
    orthogonal: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        count = len(scales(self.bandwidth))
        if self.features % (2 * count):
            raise InputError(f"features must be a multiple of 2 x {count} bandwidths; got {self.features}")

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(symmetric=not is_fitted(self.bandwidth))

    def bind(self, reference: Real) -> tuple[FourierMean, FourierTarget]:
        """Frequencies from the seed and the fitted bandwidth; the target is the reference's mean features."""
        widths = bandwidths(self.bandwidth, reference)
        frequencies = self._frequencies(reference.dimension, widths).to(reference.place)
        statistic = FourierMean(reference.mean, frequencies)
        measured = reference.summarize(statistic, user="mmd_rff")
        return statistic, FourierTarget(measured.value / measured.mass, len(widths) / len(frequencies))

    def distance(self, summary: Any, target: FourierTarget, *, generator: Any = None) -> Tensor:
        """The mean squared difference of the mean features."""
        return (summary.value / summary.mass - target.mean).square().sum() * target.scale

    def _frequencies(self, d: int, widths: tuple[float, ...]) -> Tensor:
        """P frequencies as rows, float64 on the CPU."""
        source = torch.Generator().manual_seed(self.seed)
        count = self.features // 2
        spread = SPREADS[self.kernel](torch.randn(count, generator=source, dtype=torch.float64))
        normal = torch.randn(count, d, generator=source, dtype=torch.float64)
        if self.orthogonal:
            lengths = torch.randn(count, d, generator=source, dtype=torch.float64).norm(dim=1)
            normal = _orthonormal(normal) * lengths[:, None]
        scale = torch.tensor(widths, dtype=torch.float64).repeat(count // len(widths))
        return normal * (spread / scale)[:, None]


def _orthonormal(rows: Tensor) -> Tensor:
    """Rows orthonormal in blocks of d, uniform over such blocks where the given rows are normal."""
    count, d = rows.shape
    blocks = torch.cat([rows, rows[: -count % d]]) if count >= d else rows  # the last one filled up, then cut
    q, r = torch.linalg.qr(blocks.reshape(-1, min(count, d), d).mT)
    return (q * r.diagonal(dim1=1, dim2=2).sign()[:, None]).mT.reshape(-1, d)[:count]


# what multiplies a normal frequency, from a standard normal g: kernels as mixtures of Gaussians over their width
SPREADS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": torch.ones_like,
    "laplacian": lambda g: 1 / g.abs(),
    "inverse_multiquadric": torch.abs,
}
