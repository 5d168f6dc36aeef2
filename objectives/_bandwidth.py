"""Bandwidths: what is accepted, the median heuristic, and radial kernels by name."""

from typing import Literal

from objectives._kernels import Gaussian, InverseMultiquadric, Laplacian, RationalQuadratic
from objectives._pairs import Radial
from rdm.api import Positive, Real, median_distance

Multiple = tuple[Literal["median"], Positive]  # of the median distance within the reference
Scale = Positive | Multiple
Bandwidth = Positive | Literal["median"] | Multiple | tuple[Scale, ...] | list[Scale]
RADIAL = {
    "gaussian": Gaussian,
    "laplacian": Laplacian,
    "inverse_multiquadric": InverseMultiquadric,
    "rational_quadratic": RationalQuadratic,
}


def scales(bandwidth: Bandwidth) -> list[Scale]:
    """The scales of the kernels that are summed; "median" is once the median."""
    if bandwidth == "median":
        return [("median", 1.0)]
    several = isinstance(bandwidth, list | tuple) and bandwidth[0] != "median"
    return list(bandwidth) if several else [bandwidth]  # type: ignore[arg-type, list-item]


def is_fitted(bandwidth: Bandwidth) -> bool:
    """Whether it depends on the reference."""
    return any(isinstance(scale, list | tuple) for scale in scales(bandwidth))


def bandwidths(bandwidth: Bandwidth, reference: Real) -> tuple[float, ...]:
    """The numbers that a bandwidth stands for, under a reference."""
    median = median_distance(reference) if is_fitted(bandwidth) else 1.0
    given = scales(bandwidth)
    return tuple(float(scale[1]) * median if isinstance(scale, list | tuple) else float(scale) for scale in given)


def radial(name: str, widths: tuple[float, ...], alpha: float) -> Radial:
    """The radial kernel called `name`; alpha is used by the rational quadratic one alone."""
    return RationalQuadratic(widths, alpha) if name == "rational_quadratic" else RADIAL[name](widths)
