"""Data sets in memory."""

from typing import NamedTuple

import torch
from torch import Tensor


class Dataset(NamedTuple):
    """Items with labels: pictures, sound or any other tensors, all called `images`."""

    name: str
    images: Tensor  # n ...; pictures are n c h w in [0, 1], waveforms n samples in [-1, 1]
    labels: Tensor  # n, int64
    classes: int

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on a device."""
        return self._replace(images=self.images.to(device), labels=self.labels.to(device))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n items and labels, uniformly with replacement; `generator` lives on the CPU."""
        rows = torch.randint(len(self.images), (n,), generator=generator).to(self.images.device)
        return self.images[rows], self.labels[rows]
