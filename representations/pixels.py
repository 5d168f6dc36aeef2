"""The items themselves, and projections fitted on them."""

from functools import partial

import torch
from torch import Tensor, nn

from rdm.api import InputError, Representation, representations


@representations.register("pixels")
def pixels() -> Representation:
    """Every item flattened to one row: raw pixels, or any tensor's numbers.

    Shapes: n ... -> n d. Cost: none.
    """
    return Representation("pixels", nn.Flatten())


@representations.register("pca", examples=({"components": 4},))
def pca(components: int = 32, whiten: bool = False) -> Representation:
    """Principal components of the flattened items, fitted on the reference (`Representation.fitted`).

    z = (x - mean) V, with V the leading eigenvectors of the reference's covariance, divided by the square root of
    their eigenvalues with `whiten` (Hotelling 1933).

    Shapes: n ... -> n components. Cost: n d components; the fit of m rows m d k + k^3 in float64, k = min(m, d).
    Raises: InputError: components above the rank of the reference, or below 1.
    """
    settings = {"components": components, "whiten": whiten}
    return Representation("pca", None, settings, fit=partial(_fit_components, components=components, whiten=whiten))


class _Projection(nn.Module):
    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    def forward(self, items: Tensor) -> Tensor:
        return (items.flatten(1) - self.mean.to(items)) @ self.matrix.to(items)


def _fit_components(items: Tensor, components: int, whiten: bool) -> _Projection:
    x = items.flatten(1).double()
    mean = x.mean(0)
    x = x - mean
    few = x.shape[0] < x.shape[1]  # then the rows' inner products have the same eigenvalues, and are the smaller
    eigenvalues, vectors = torch.linalg.eigh((x @ x.T if few else x.T @ x) / len(x))
    rank = int((eigenvalues > eigenvalues[-1] * 1e-12).sum())
    if not 1 <= components <= rank:
        raise InputError(f"pca needs 1 <= components <= {rank}, the rank of the reference; got {components}")
    matrix, deviations = vectors[:, -components:].flip(1), eigenvalues[-components:].flip(0).sqrt()
    if few:
        matrix = x.T @ matrix / (deviations * len(x) ** 0.5)
    return _Projection(mean, matrix / deviations if whiten else matrix)
