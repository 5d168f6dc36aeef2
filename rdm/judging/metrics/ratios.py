"""Distances as ratios to what a fresh real split scores: FDr, SW_r, MMD_r, and their means over encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from rdm.api import Count, Ratio, metrics

# FD of ImageNet's validation to its training set at 256, as the paper's tables follow from; its evaluator rounds them
# to 1.68, 56.87, 14.19, 0.04, 0.60, 5.60, which makes FDr of MAE 7 % larger.
FD_LOSS = {
    "inception_symmetric": 1.6774,
    "convnext": 56.868,
    "dinov2": 14.185,
    "mae_cls": 0.04284,
    "siglip2": 0.6049,
    "clip": 5.6047,
}


@metrics.register("fdr")
@dataclass(frozen=True)
class FrechetRatio(Ratio):
    """Fréchet distance over that of fresh real rows; FDr^k is its mean over k encoders.

    Source: Yang et al. (2026), "Representation Fréchet Loss", section 4 (FDr6, against fixed constants of 50,000
    validation images: below="fd_loss"; here against the reference's own fresh split, with as many rows as are judged,
    at most 16,384).

    Shapes: features n d. Units: none, 1 is real. Cost: twice that of `fd`.
    """

    name: ClassVar[str] = "fdr"
    of: ClassVar[str] = "fd"
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {"fd_loss": FD_LOSS}


@metrics.register("sw_r")
@dataclass(frozen=True)
class SlicedRatio(Ratio):
    """Sliced Wasserstein distance over that of fresh real rows; SW_r^k is its mean over k encoders.

    Source: Feng et al. (2026), "Representation Distribution Matching", eq. 5: rooted distances, 1,024 fixed
    directions, 16,384 rows or fewer.

    Shapes: features n d. Units: none, 1 is real. Cost: twice that of `sw`.
    """

    name: ClassVar[str] = "sw_r"
    of: ClassVar[str] = "sw"
    shared: ClassVar[tuple[str, ...]] = ("projections", "rows", "directions")

    projections: Count = 1024
    directions: Literal["fixed", "irdm"] = "fixed"


@metrics.register("mmd_r")
@dataclass(frozen=True)
class KernelRatio(Ratio):
    """Biased squared MMD over that of fresh real rows; MMD_r^k is its mean over k encoders.

    Source: Feng et al. (2026), appendix D, with the exact kernel in place of its random Fourier features.

    Shapes: features n d. Units: none, 1 is real. Cost: twice that of `mmd`.
    """

    name: ClassVar[str] = "mmd_r"
    of: ClassVar[str] = "mmd"
