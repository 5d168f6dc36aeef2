"""How a velocity network learns about the length of a jump, and so becomes a flow map."""

import math

import torch
from torch import Tensor, nn


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
