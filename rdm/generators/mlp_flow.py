"""A small class-conditional flow model: a residual network on the flattened item."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from rdm.api import Count, FlowGenerator, Size, generators, load_weights


@generators.register("mlp_flow", examples=({"width": 16, "depth": 1},))
class MLPFlow(FlowGenerator):
    """Velocity by residual blocks, each modulated by time and class (adaptive norm, zero at the start).

    Source of the blocks: Peebles and Xie (2023), "Scalable Diffusion Models with Transformers", without attention.

    Shapes: noise n c h w, condition n -> images n c h w. Cost: about 8 depth width^2 multiplications an evaluation.
    Raises: InputError: steps below 1, unknown solver, weights of another shape.
    """

    def __init__(
        self,
        shape: tuple[Count, ...] = (1, 8, 8),
        classes: Count | None = 10,
        width: Count = 192,
        depth: Size = 3,
        steps: Count = 1,
        solver: Literal["euler", "heun"] = "euler",
        weights: str | None = None,
    ):
        super().__init__(steps, solver)
        self.shape, self.classes = tuple(shape), classes
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2 * math.pi * torch.linspace(0.25, 4, 16), persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_class = nn.Embedding(max(classes or 1, 1), width)
        self.inlet = nn.Linear(math.prod(self.shape), width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.outlet = nn.Linear(width, math.prod(self.shape))
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)
        if weights is not None:
            load_weights(self, weights)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        phase = t[:, None] * self.frequencies.to(x)
        embedding = self.embed_time(torch.cat([phase.sin(), phase.cos()], 1))
        embedding = embedding + self.embed_class(condition if condition is not None else torch.zeros_like(t).long())
        h = self.inlet(x.flatten(1))
        for block in self.blocks:
            h = block(h, nn.functional.silu(embedding))
        return self.outlet(h).view_as(x)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift, gate = self.modulate(embedding).chunk(3, 1)
        return h + (1 + gate) * self.layers(self.norm(h) * (1 + scale) + shift)
