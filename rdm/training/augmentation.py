"""Random changes of items that leave their labels alone."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.numbers import Count, Nonnegative, Size, validated


class Augmentation(ABC):
    """An item changed at random, of the same shape; all randomness is drawn from `generator`, on the item's device."""

    @abstractmethod
    def __call__(self, item: Tensor, generator: torch.Generator) -> Tensor:
        """Change one item."""


@validated
@dataclass(frozen=True)
class Jitter(Augmentation):
    """The item shifted by at most `shift` along each of its last `axes` dimensions, and Gaussian noise added.

    Zeros enter where it leaves. Images shift along two dimensions, in pixels; sound along one, in samples.
    """

    noise: Nonnegative = 0.1
    shift: Size = 1
    axes: Count = 2

    def __call__(self, item: Tensor, generator: torch.Generator) -> Tensor:
        """One shift an item, noise of its own for every number."""
        if item.ndim < self.axes:
            raise InputError(
                f"jitter shifts the last {self.axes} dimensions of an item; got one of shape {tuple(item.shape)}; "
                "give axes=2 for images, 1 for sound"
            )
        changed = self.noise * torch.empty_like(item).normal_(generator=generator)
        to, source = changed, item
        for axis in range(item.ndim - self.axes, item.ndim) if self.shift else ():
            move = int(torch.randint(-self.shift, self.shift + 1, (), generator=generator, device=item.device))
            move = max(-item.shape[axis], min(move, item.shape[axis]))
            kept = item.shape[axis] - abs(move)
            to, source = to.narrow(axis, max(-move, 0), kept), source.narrow(axis, max(move, 0), kept)
        to += source
        return changed
