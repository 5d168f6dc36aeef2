"""The norm of the whole gradient, whoever holds its parts, and clipping by it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rdm.distributed import summed
from rdm.scaling.sharding import is_split, local
from rdm.timing.regions import region


@torch.no_grad()
@region("clipping")
def clipped(parameters: Iterable[Tensor], largest: float | None) -> Tensor:
    r"""Scale gradients, summed over ranks before, to a norm of at most `largest`; returns the norm that they had.

    .. math:: g \leftarrow g \min(1, c / (\|g\| + 10^{-6})), \quad
              \|g\|^2 = \sum_{whole} \|g_p\|^2 + \sum_{ranks} \sum_{sharded} \|g_p^{(r)}\|^2

    Every rank finds the same number, in float64; one that is not finite leaves the gradients as they are. Nothing waits
    for a device.

    Args:
        parameters: some whole on every rank, others sharded.
        largest: the bound c; None for none.
    """
    held = [p for p in parameters if p.grad is not None]
    whole = [p.grad for p in held if p.grad is not None and not is_split(p)]
    split = [local(p.grad) for p in held if p.grad is not None and is_split(p)]
    squares = _squares(whole)
    if any(is_split(p) for p in held):
        squares = squares + summed(_squares(split)).to(squares.device)
    norm = squares.sqrt()
    if largest is not None and held:
        scale = largest / (norm + 1e-6)
        if scale.device.type != "cpu":
            scale = torch.where(norm < torch.inf, scale.clamp_max(1), 1)
        if scale.device.type != "cpu" or 0 < float(scale) < 1:
            torch._foreach_mul_([*whole, *split], scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def _squares(gradients: list[Tensor]) -> Tensor:
    """Sum of squares in float64."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    norms = torch._foreach_norm(gradients, dtype=torch.float64)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).square().sum()
