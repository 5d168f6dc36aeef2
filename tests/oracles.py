"""Independent values to test against: slow loops in float64 and other libraries, with their own conventions."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
import torch
from torch import Tensor


def frechet_by_sqrtm(x: Tensor, y: Tensor, correction: int) -> float:
    """Squared Fréchet distance by scipy's square root of the product of covariances."""
    cx, cy = (np.atleast_2d(np.cov(v.numpy(), rowvar=False, ddof=correction)) for v in (x, y))
    root = np.real(scipy.linalg.sqrtm(cx @ cy))
    return float((x.mean(0) - y.mean(0)).square().sum()) + float(np.trace(cx) + np.trace(cy) - 2 * np.trace(root))


def frechet_by_autograd(x: Tensor, y: Tensor) -> Tensor:
    """The published training form: eigvalsh of R C R with R the symmetric root, float64, autograd through it."""
    cx, cy = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(cy)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ cx @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    return (x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * overlap


def frechet_by_nuclear_norm(x: Tensor, y: Tensor) -> Tensor:
    """Well-conditioned form for fewer rows than dimensions: the overlap is a nuclear norm of centred rows."""
    n, m = len(x), len(y)
    xc, yc = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / (m - 1) ** 0.5
    overlap = torch.linalg.matrix_norm(xc @ yc.T, "nuc")
    return (x.mean(0) - y.mean(0)).square().sum() + xc.square().sum() + yc.square().sum() - 2 * overlap


def mmd_by_loops(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, kernel: Callable[[float], float], *, unbiased: bool
) -> float:
    """Squared MMD by double loops over rows; `kernel` is a function of the distance."""
    return discrepancy_by_loops(x, a, y, b, lambda p, q: kernel(math.dist(p, q)), unbiased=unbiased)


def discrepancy_by_loops(
    x: Tensor,
    a: Tensor,
    y: Tensor,
    b: Tensor,
    kernel: Callable[[Sequence[float], Sequence[float]], float],
    *,
    unbiased: bool,
) -> float:
    """The same for a `kernel` of two rows. Unbiased: pairs of a row with itself left out, weights of pairs renormed."""

    def double_sum(p: Tensor, u: Sequence[float], q: Tensor, v: Sequence[float], skip: bool) -> float:
        pairs = [(i, j) for i in range(len(p)) for j in range(len(q)) if not (skip and i == j)]
        terms = [u[i] * v[j] * kernel(p[i].tolist(), q[j].tolist()) for i, j in pairs]
        return math.fsum(terms) / (math.fsum(u[i] * v[j] for i, j in pairs) if skip else 1.0)

    u, v = (a / a.sum()).tolist(), (b / b.sum()).tolist()
    within = double_sum(x, u, x, u, unbiased) + double_sum(y, v, y, v, unbiased)
    return within - 2 * double_sum(x, u, y, v, False)
