"""A small class-conditional flow model: a residual network on the flattened item."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from rdm.api import Count, Size, generators, load_weights
from rdm.generators.parts.interval import IntervalEmbedding, MayBeMap


@generators.register("mlp_flow", examples=({"width": 16, "depth": 1}, {"width": 16, "depth": 1, "map": True}))
class MLPFlow(MayBeMap):
    """Velocity by residual blocks, each modulated by time and class (adaptive norm, zero at the start).

    Source of the blocks: Peebles and Xie (2023), "Scalable Diffusion Models with Transformers", without attention.

    Shapes: noise n c h w, condition n -> images n c h w. Cost: about 8 depth width^2 multiplications an evaluation.
    Raises: InputError: steps below 1, unknown solver, weights of another shape.

    Args:
        map: a flow map: the network is told the length of a jump too, by an embedding that is zero at the start; the
            weights may be those of a velocity.
        clamp: clamp items to [0, 1] in training as well; evaluation always does.
        weights: a run folder or a file.
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
        map: bool = False,
        clamp: bool = True,
    ):
        super().__init__(steps, solver)
        self.shape, self.classes, self.is_map, self.clamp = tuple(shape), classes, map, clamp
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2 * math.pi * torch.linspace(0.25, 4, 16), persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_class = nn.Embedding(max(classes or 1, 1), width)
        self.inlet = nn.Linear(math.prod(self.shape), width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.outlet = nn.Linear(width, math.prod(self.shape))
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)
        self.embed_interval = IntervalEmbedding(width) if map else None
        if weights is not None:
            load_weights(self, weights, fresh=("embed_interval.",))

    def evaluate(self, x: Tensor, h: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        phase = t[:, None] * self.frequencies.to(x)
        embedding = self.embed_time(torch.cat([phase.sin(), phase.cos()], 1))
        embedding = embedding + self.embed_class(condition if condition is not None else torch.zeros_like(t).long())
        if self.embed_interval is not None:
            embedding = embedding + self.embed_interval(h)
        hidden = self.inlet(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, nn.functional.silu(embedding))
        return self.outlet(hidden).view_as(x)


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
