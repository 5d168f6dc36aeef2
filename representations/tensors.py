"""Representations of any tensor: itself, whitened, projected at random, random features of a kernel."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from rdm.api import Float, InputError, Real, Representation, median_distance, representations


@representations.register("identity")
def identity(name: str = "identity") -> Representation:
    """Every item's numbers as one row.

    Shapes: n ... -> n d. Cost: none.
    """
    return Representation(name, nn.Flatten())


@representations.register(
    "whitening",
    examples=({"shrinkage": 0.1}, {"method": "pca", "shrinkage": 0.5}, {"shrinkage": "ledoit_wolf"}),
)
def whitening(
    method: Literal["zca", "pca"] = "zca",
    shrinkage: float | Literal["ledoit_wolf"] = "ledoit_wolf",
    name: str = "whitening",
) -> Representation:
    r"""Items with the reference's mean and (shrunk) covariance taken out, fitted in float64 (`Representation.fitted`).

    .. math:: z = W (x - \mu), \quad \Sigma_s = (1 - s) \Sigma + s \frac{\operatorname{tr} \Sigma}{d} I, \quad
              W = \Sigma_s^{-1/2} \text{ (zca) or } \Lambda_s^{-1/2} U^\top \text{ (pca)}

    Source: Kessy, Lewin and Strimmer (2018), "Optimal Whitening and Decorrelation", table 1; zca is the whitening that
    moves items least (Bell and Sejnowski 1997). Sigma is the biased covariance. shrinkage "ledoit_wolf" is the s of
    least expected squared error (Ledoit and Wolf 2004, "A Well-Conditioned Estimator for Large-Dimensional Covariance
    Matrices", lemma 3.3 and section 3.3); a number from 0 to 1 is that s. pca orders axes by falling variance.

    Shapes: n ... -> n d. Cost: n d^2; the fit m d^2 + d^3.
    Raises: InputError: unknown method, shrinkage outside [0, 1], a singular covariance that is not shrunk.
    """
    if method not in ("zca", "pca"):
        raise InputError(f'method must be "zca" or "pca"; got {method!r}')
    if shrinkage != "ledoit_wolf" and not (isinstance(shrinkage, int | float) and 0 <= shrinkage <= 1):
        raise InputError(f'shrinkage must be a number from 0 to 1 or "ledoit_wolf"; got {shrinkage!r}')
    settings = {"method": method, "shrinkage": shrinkage}
    return Representation(name, None, settings, fit=partial(_whitening, method=method, shrinkage=shrinkage))


@representations.register("random_projection", examples=({"features": 8},))
def random_projection(features: int = 64, seed: int = 0, name: str = "random_projection") -> Representation:
    """Items times a Gaussian matrix of variance 1 / features, which keeps squared distances in the mean.

    Source: Johnson and Lindenstrauss (1984); the Gaussian form is Dasgupta and Gupta's (2003). The matrix is drawn
    from `seed` for the size of the reference's items (`Representation.fitted`).

    Shapes: n ... -> n features. Cost: n d features.
    Raises: InputError: features below 1.
    """
    if features < 1:
        raise InputError(f"features must be at least 1; got {features}")
    settings = {"features": features, "seed": seed}
    return Representation(name, None, settings, fit=partial(_projection, **settings))


@representations.register(
    "random_fourier", examples=({"features": 32, "bandwidth": 2.0}, {"features": 32, "kernel": "laplacian"})
)
def random_fourier(
    features: int = 512,
    kernel: Literal["gaussian", "laplacian"] = "gaussian",
    bandwidth: float | Literal["median"] = "median",
    seed: int = 0,
    name: str = "random_fourier",
) -> Representation:
    r"""Random Fourier features, whose inner products are a kernel in the mean over draws.

    .. math:: \phi(x) = P^{-1/2} (\cos \omega_p \cdot x, \sin \omega_p \cdot x)_{p \le P}, \quad P = features / 2

    Source: Rahimi and Recht (2007), with the paired cosine and sine of Sutherland and Schneider (2015), eq. 4.
    gaussian exp(-|x - y|^2 / 2 sigma^2): omega = z / sigma, z standard normal; laplacian exp(-|x - y| / sigma): omega =
    z / (sigma |g|), g standard normal, multivariate Cauchy. bandwidth "median" is the square root of the reference's
    median squared distance. Frequencies are drawn from `seed` (`Representation.fitted`).

    Shapes: n ... -> n features. Cost: n d features / 2.
    Raises: InputError: an odd number of features, an unknown kernel, a bandwidth that is not positive.
    """
    if features < 2 or features % 2:
        raise InputError(f"features must be even and positive; got {features}")
    if kernel not in ("gaussian", "laplacian"):
        raise InputError(f'kernel must be "gaussian" or "laplacian"; got {kernel!r}')
    if bandwidth != "median" and not (isinstance(bandwidth, int | float) and 0 < bandwidth < float("inf")):
        raise InputError(f'bandwidth must be a positive number or "median"; got {bandwidth!r}')
    settings = {"features": features, "kernel": kernel, "bandwidth": bandwidth, "seed": seed}
    return Representation(name, None, settings, fit=partial(_fourier, **settings))


class _Linear(nn.Module):
    """Flattened items less `shift`, times `matrix`."""

    matrix: Tensor
    shift: Tensor

    def __init__(self, matrix: Tensor, shift: Tensor | None = None):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", matrix.new_zeros(len(matrix)) if shift is None else shift)

    def forward(self, items: Tensor) -> Tensor:
        return (items.flatten(1) - self.shift.to(items)) @ self.matrix.to(items)


class _Waves(nn.Module):
    def forward(self, phase: Tensor) -> Tensor:
        return torch.cat([phase.cos(), phase.sin()], 1) / phase.shape[1] ** 0.5


def ledoit_wolf(centred: Float[Tensor, "m d"]) -> float:
    """The share s of tr(Sigma) / d on the diagonal that makes the expected squared error of the covariance least.

    b^2 / d^2 in the notation of Ledoit and Wolf (2004): d^2 the squared distance of Sigma from the multiple of the
    identity, b^2 the mean squared distance of x x^T from Sigma over m, at most d^2.
    """
    m, d = centred.shape
    covariance = centred.T @ centred / m
    squares = covariance.square().sum()
    spread = squares - covariance.trace().square() / d
    error = (centred.square().sum(1).square().mean() - squares) / m
    return float((error / spread).clamp(0, 1)) if spread > 0 else 1.0


def _whitening(items: Tensor, method: str, shrinkage: float | str) -> nn.Module:
    x = items.flatten(1).double()
    mean = x.mean(0)
    share = ledoit_wolf(x - mean) if isinstance(shrinkage, str) else shrinkage
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values = (1 - share) * values.clamp(min=0) + share * values.mean()
    rank = int((values > values[-1] * 1e-12).sum())
    if values[-1] <= 0 or rank < len(values):
        raise InputError(
            f"whitening with shrinkage {share:g}: the covariance of the reference has rank {rank} of {len(values)}; "
            "shrink it, or take the representation pca with that many components"
        )
    scaled = vectors / values.sqrt()
    return _Linear(scaled @ vectors.T if method == "zca" else scaled.flip(1), mean)


def _projection(items: Tensor, features: int, seed: int) -> nn.Module:
    return _Linear(_normal(features, items[0].numel(), seed).T / features**0.5)


def _fourier(items: Tensor, features: int, kernel: str, bandwidth: float | str, seed: int) -> nn.Module:
    x = items.flatten(1)
    sigma = median_distance(Real.of(x)) if isinstance(bandwidth, str) else float(bandwidth)
    frequencies = _normal(features // 2, x.shape[1], seed) / sigma
    if kernel == "laplacian":
        frequencies = frequencies / _normal(features // 2, 1, seed + 1).abs()
    return nn.Sequential(_Linear(frequencies.T), _Waves())


def _normal(rows: int, columns: int, seed: int) -> Tensor:
    """Standard normal numbers in float64, drawn on the CPU."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
