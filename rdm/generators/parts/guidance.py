"""Classifier-free guidance: two forward passes, the second without a condition, inside an interval of times."""

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    velocity: Callable[[Tensor], Tensor],
    t: Tensor,
    labels: Tensor | None,
    null: int,
    scale: float,
    interval: tuple[float, float],
    channels: int | None = None,
) -> Tensor:
    """v_0 + scale (v_c - v_0) where interval[0] < t < interval[1] (an end at 0 or 1 is inside), elsewhere v_c.

    The second pass is spared where no time is inside. Only the first `channels` are guided, all for None.
    """
    nothing = torch.full((len(t),), null, device=t.device)
    if labels is None:
        return velocity(nothing)
    conditional = velocity(labels)
    inside = ((t > interval[0]) | (interval[0] == 0)) & ((t < interval[1]) | (interval[1] == 1))
    if scale == 1 or not (t.is_meta or bool(inside.any())):
        return conditional
    away = torch.where(inside.view(-1, *[1] * (conditional.ndim - 1)), scale - 1.0, 0.0) * (
        conditional - velocity(nothing)
    )
    if channels is not None:
        away = torch.cat([away[:, :channels], torch.zeros_like(away[:, channels:])], 1)
    return conditional + away
