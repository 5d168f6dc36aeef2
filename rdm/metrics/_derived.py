"""What kernels need to know of a reference, derived from its sampled rows once, when the file is made."""

import torch
from torch import Tensor

from objectives._bandwidth import median_distance
from objectives._landmarks import landmarks
from rdm.errors import InputError
from rdm.reference import Reference


def median_of(rows: Tensor) -> float | None:
    """Median distance between the rows; None where more than half of the pairs coincide."""
    try:
        return median_distance(Reference.from_features(rows))
    except InputError:
        return None


def landmarks_of(rows: Tensor, count: int) -> Tensor:
    """K-means centres of the rows, float64."""
    ones = torch.ones(len(rows), dtype=torch.float64)
    return landmarks(rows.double(), ones, count, method="k-means", seed=0)
