"""How a velocity network learns about the length of a jump, and so becomes a flow map."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from rdm.api import FlowGenerator


class IntervalEmbedding(nn.Module):
    """Embedding of h = t - r "n" as "n width", zero at the start: u(x, r, t) = v(x, t) for every r then.

    Added to the embedding of t, it makes a flow map of a velocity network without changing what that one knows.
    """

    def __init__(self, width: int):
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2 * math.pi * torch.linspace(0.25, 4, 16), persistent=False)
        self.inlet, self.outlet = nn.Linear(32, width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.outlet.weight)

    def forward(self, h: Tensor) -> Tensor:
        """Embed lengths."""
        phase = h[:, None] * self.frequencies.to(h)
        return self.outlet(nn.functional.silu(self.inlet(torch.cat([phase.sin(), phase.cos()], 1))))


class MayBeMap(FlowGenerator):
    """A velocity network that is told the length of a jump too where `is_map`, and is a flow map then."""

    @abstractmethod
    def evaluate(self, x: Tensor, h: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The mean velocity from t down to t - h (each n); of a network that is no map, the velocity at t."""

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """v: over no time."""
        return self.evaluate(x, torch.zeros_like(t), t, condition)

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """u: by one evaluation of a map, by a step of the solver otherwise."""
        if not self.is_map:
            return super().average_velocity(x, r, t, condition)
        return self.evaluate(x, t - r, t, condition)
