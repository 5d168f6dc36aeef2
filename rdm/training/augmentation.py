"""Random changes of items that leave their labels alone."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rdm.errors import InputError
from rdm.numbers import Count, Nonnegative, Size, validated


class Augmentation(ABC):
    """Items changed at random, of the same shape; all randomness is drawn from `generator`."""

    @abstractmethod
    def __call__(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch of items."""


@validated
@dataclass(frozen=True)
class Jitter(Augmentation):
    """The batch shifted by at most `shift` along each of its last `axes` dimensions, and Gaussian noise added.

    Zeros enter where the items leave. Images shift along two dimensions, in pixels; sound along one, in samples.
    """

    noise: Nonnegative = 0.1
    shift: Size = 1
    axes: Count = 2

    def __call__(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """One shift a batch, noise of its own for every number."""
        if items.ndim <= self.axes:
            raise InputError(
                f"jitter shifts the last {self.axes} dimensions of items; got a batch of shape {tuple(items.shape)}; "
                "give axes=2 for images, 1 for sound"
            )
        if self.shift:
            moves = torch.randint(-self.shift, self.shift + 1, (self.axes,), generator=generator).tolist()
            padded = nn.functional.pad(items, [self.shift] * 2 * self.axes)
            for axis, move in enumerate(moves, items.ndim - self.axes):
                padded = padded.narrow(axis, self.shift + move, items.shape[axis])
            items = padded
        return items + self.noise * torch.randn(items.shape, generator=generator).to(items)
