"""The items themselves, and projections fitted on them."""

from functools import partial

import torch
from torch import Tensor, nn

from rdm.api import InputError, Representation, representations, stream

EXACT = 2048  # rows or dimensions up to which all components are found
ITERATIONS, SPARE = 8, 16  # of the subspace that is found above that, and its directions beyond the components


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

    Where both the rows and d are above 2,048, V is found by subspace iteration from fixed random directions (Halko et
    al. 2011, algorithm 4.4): to rounding where the spectrum falls after the last component, else within its tail.

    Shapes: n ... -> n components. Cost: n d components; the fit of m rows m d k + k^3 in float64, k = min(m, d), or
    18 m d (components + 16).
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
    if min(x.shape) > EXACT:
        return _leading(x, mean, components, whiten)
    few = x.shape[0] < x.shape[1]  # then the rows' inner products have the same eigenvalues, and are the smaller
    eigenvalues, vectors = torch.linalg.eigh((x @ x.T if few else x.T @ x) / len(x))
    rank = int((eigenvalues > eigenvalues[-1] * 1e-12).sum())
    if not 1 <= components <= rank:
        raise InputError(f"pca needs 1 <= components <= {rank}, the rank of the reference; got {components}")
    matrix, deviations = vectors[:, -components:].flip(1), eigenvalues[-components:].flip(0).sqrt()
    if few:
        matrix = x.T @ matrix / (deviations * len(x) ** 0.5)
    return _Projection(mean, matrix / deviations if whiten else matrix)


def _leading(x: Tensor, mean: Tensor, components: int, whiten: bool) -> _Projection:
    """The first components alone, from centred rows of which there are many, in many dimensions."""
    if not 1 <= components <= EXACT:
        raise InputError(f"pca needs 1 <= components <= {EXACT} of {tuple(x.shape)} numbers; got {components}")
    start = torch.randn(x.shape[1], components + SPARE, generator=stream(0, "pca"), dtype=x.dtype).to(x.device)
    basis = torch.linalg.qr(start).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    _, lengths, turned = torch.linalg.svd(x @ basis, full_matrices=False)
    matrix, deviations = basis @ turned[:components].T, lengths[:components] / len(x) ** 0.5
    return _Projection(mean, matrix / deviations if whiten else matrix)
