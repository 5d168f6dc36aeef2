"""The factor of the loss that keeps small gradients from being 0 in float16, found while training goes on."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rdm.errors import NonFiniteError
from rdm.files.schema import Check, number, sequence
from rdm.scaling.sharding import local

FIRST, EVERY = 2.0**16, 2000  # of torch.amp.GradScaler


class Overflow(NonFiniteError):
    """A gradient that was too large for float16 at a loss scale, which has been halved."""


class LossScale:
    """What losses are multiplied by, and their gradients divided by once they are summed over chunks and ranks.

    Gradients below 6e-8 are 0 in float16, and those above 65,504 infinite. The scale is halved where a gradient is not
    finite, down to 1, and doubled after 2,000 steps in a row in which all were. As a power of two it leaves the bits
    of what neither rounds to 0 nor overflows as they are. A scale that is not `dynamic` is 1.

    Source: Micikevicius et al. (2018), "Mixed Precision Training", section 3.2; numbers of `torch.amp.GradScaler`.
    """

    def __init__(self, *, dynamic: bool):
        self.dynamic, self.value, self.steps = dynamic, FIRST if dynamic else 1.0, 0

    @torch.no_grad()
    def divide(self, parameters: Iterable[Tensor]) -> None:
        """Take the scale out of summed gradients."""
        if self.value != 1:
            for p in parameters:
                if p.grad is not None:
                    local(p.grad).mul_(1 / self.value)

    def see(self, norm: float) -> None:
        """Take in the norm of a whole gradient.

        Raises:
            Overflow: it is not finite, and may be with a smaller scale.
        """
        if norm < float("inf"):
            self.steps += 1
            if self.dynamic and self.steps >= EVERY:
                self.value, self.steps = 2 * self.value, 0
        elif self.value > 1:
            self.value, self.steps = self.value / 2, 0
            raise Overflow(f"a gradient left float16 at a loss scale of {2 * self.value:g}; it is {self.value:g} now")

    @property
    def logged(self) -> dict[str, float]:
        """What a run's log says of it."""
        return {"loss_scale": self.value} if self.dynamic else {}

    def state(self) -> dict[str, Any]:
        """An entry of a checkpoint, if it changes."""
        return {"loss_scale": [self.value, self.steps]} if self.dynamic else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; of a run in another precision nothing."""
        if self.dynamic and "loss_scale" in state:
            self.value, self.steps = state["loss_scale"]


def scale_in_checkpoint() -> dict[str, Check]:
    """The check of the entry."""
    return {"loss_scale": sequence([number(low=1), number(int, low=0)])}
