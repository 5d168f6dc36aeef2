"""Bandwidths: what is accepted, the median heuristic, and radial kernels by name."""

from typing import Literal

from objectives._kernels import Gaussian, InverseMultiquadric, Laplacian, Radial, RationalQuadratic
from rdm.api import Positive, Real, median_distance

Bandwidth = Positive | tuple[Positive, ...] | list[Positive] | Literal["median"]
RADIAL = {
    "gaussian": Gaussian,
    "laplacian": Laplacian,
    "inverse_multiquadric": InverseMultiquadric,
    "rational_quadratic": RationalQuadratic,
}


def bandwidths(bandwidth: Bandwidth, reference: Real) -> tuple[float, ...]:
    """The numbers that a bandwidth stands for, under a reference."""
    if bandwidth == "median":
        return (median_distance(reference),)
    scales = bandwidth if isinstance(bandwidth, list | tuple) else [bandwidth]
    return tuple(float(scale) for scale in scales)


def radial(name: str, scales: tuple[float, ...], alpha: float) -> Radial:
    """The radial kernel called `name`; alpha is used by the rational quadratic one alone."""
    return RationalQuadratic(scales, alpha) if name == "rational_quadratic" else RADIAL[name](scales)
