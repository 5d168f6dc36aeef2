"""Shared linear algebra, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from rdm.api import InputError, Sum, usual


def mean_and_covariance(moments: Sum, *, correction: int) -> tuple[Tensor, Tensor]:
    """Mean (about the statistic's shift) and covariance, divided by 1 - correction / n with Kish's effective n."""
    mean = moments.value[0] / moments.mass
    covariance = (moments.value[1:] / moments.mass).addr_(mean, mean, alpha=-1)
    count = moments.count
    if usual(count <= correction * (1 + 1e-9), False):
        raise InputError(
            f"a covariance with correction={correction} needs an effective number of rows above {correction}; "
            f"got {float(count):.3g}; use more rows or correction=0"
        )
    return mean, covariance.div_(1 - correction / count)


def graded_factor(covariance: Tensor) -> Tensor:
    """F (d, r) with F F^T = covariance, columns scaled eigenvectors; directions below rounding are dropped.

    The graded factor, not the symmetric root: products with it keep the spectrum's grading (measured 200 times more
    accurate gradients downstream).
    """
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    keep = above_rounding(eigenvalues)
    return vectors[:, keep] * eigenvalues[keep].sqrt()


def above_rounding(eigenvalues: Tensor) -> Tensor:
    """Mask of the eigenvalues of a positive semi-definite matrix that are more than rounding: > d eps max."""
    if len(eigenvalues) == 0:
        return eigenvalues > 0
    floor = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.max().clamp_min(0)
    return eigenvalues > floor


def range_basis(product: Callable[[Tensor], Tensor], like: Tensor, *, rank: int) -> Tensor | None:
    """Orthonormal columns "d rank" that span the range of a d x d matrix given by its products; None if it has more.

    The range finder of Halko et al. (2011), algorithm 4.1, with 8 random columns over the rank: what is left of them
    beyond the rank must be rounding, or else the matrix has a higher rank than was said.
    """
    source = torch.Generator().manual_seed(0)
    probes = torch.randn(like.shape[1], rank + 8, generator=source, dtype=like.dtype).to(like.device)
    basis, triangle = torch.linalg.qr(product(probes))
    lengths = triangle.diagonal().abs()
    if float(lengths[rank:].max()) > len(like) * torch.finfo(like.dtype).eps * float(lengths.max()):
        return None
    return basis[:, :rank]


def symmetric_product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The product, where that is symmetric: the lower half, block by block, and the upper from it; 9/16 of the work."""
    product, size = left.new_empty(len(left), len(left)) if out is None else out, max(64, -(-len(left) // 8))
    for start in range(0, len(left), size):
        stop = min(start + size, len(left))
        torch.mm(left[start:stop], right[:, :stop], out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].T
    return product
