"""JiT: a plain transformer on large patches of pixels that predicts the data."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rdm.api import Count, Fraction, Positive, Solver, generators
from rdm.generators.parts.guidance import guided
from rdm.generators.parts.interval import IntervalEmbedding, MayBeMap
from rdm.generators.parts.presets import Rule, follow, load, presets
from rdm.generators.parts.transformer import (
    BottleneckPatchEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    attend,
    cells,
    modulate,
    rotate,
    rotations,
    run,
    sincos_positions,
    unpatchify,
    xavier_linears,
    zero,
)

LEAST_TIME = 0.05  # below it, differences between state and data are divided by this time instead
PUBLIC = (Rule(r"feat_rope", None, "angles of positions are computed"),)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation), v))


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        hidden = int(4 * width * 2 / 3)
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(nn.functional.silu(gate) * value)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), rotation)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm_final, self.linear = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(modulate(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, -1)))


class _Network(nn.Module):
    """Predicts the data from a state and the network's own time, in which data is at 1."""

    def __init__(
        self, size: int, patch: int, width: int, depth: int, heads: int, bottleneck: int, classes: int, context: int,
        start: int, *, map: bool,
    ):  # fmt: skip
        super().__init__()
        grid = size // patch
        self.patch, self.context, self.start = patch, context, start
        self.null = classes
        self.t_embedder, self.y_embedder = TimeEmbedding(width), LabelEmbedding(classes, width)
        self.h_embedder = IntervalEmbedding(width) if map else None
        self.x_embedder = BottleneckPatchEmbedding(3, patch, bottleneck, width, bias=False)
        self.pos_embed = nn.Parameter(sincos_positions(width, grid))
        self.in_context_posemb = nn.Parameter(torch.randn(1, context, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.final_layer = _Final(width, 3 * patch**2)
        xavier_linears(self.blocks)
        zero(self.final_layer, *(block.adaLN_modulation for block in self.blocks))  # type: ignore[arg-type]
        nn.init.ones_(self.final_layer.norm_final.weight)
        self.rotation: Tensor
        self.register_buffer("rotation", rotations(width // heads, cells(grid), context), persistent=False)

    def forward(self, x: Tensor, own_time: Tensor, labels: Tensor, h: Tensor) -> Tensor:
        label = self.y_embedder(labels)
        c = self.t_embedder(own_time) + label
        if self.h_embedder is not None:
            c = c + self.h_embedder(h)
        tokens = self.x_embedder(x) + self.pos_embed
        early, late = self.blocks[: self.start], self.blocks[self.start :]
        tokens = run(early, tokens, c, self.rotation[:, self.context :])
        tokens = torch.cat([label[:, None] + self.in_context_posemb, tokens], 1)
        tokens = run(late, tokens, c, self.rotation)
        return unpatchify(self.final_layer(tokens[:, self.context :], c), self.patch, 3)


@generators.register(
    "jit",
    examples=(
        {
            "size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "bottleneck": 4, "context": 3, "start": 1,
            "steps": 2,
        },
    ),
)  # fmt: skip
class JiT(MayBeMap):
    """JiT: velocity (x - prediction) / max(t, 0.05), with guidance by a second forward pass inside an interval.

    Source: Li and He (2025), "Back to Basics: Let Denoising Generative Models Denoise". Class tokens join the patches
    before block `start`. One step from noise is the prediction, unguided: t = 1 is outside the published interval.

    Shapes: noise n 3 size size, condition n (labels; None for no class) -> images n 3 size size. Cost: 2 flops a
    parameter and token for each forward pass: one a step of Euler, two of Heun, twice as many where guided.
    Raises: InputError: weights of another network.

    Args:
        guidance, interval: scale (1 is none) and the times in which it acts, t = 1 being noise.
        noise_scale: deviation of the noise in units of pictures in [-1, 1].
        clamp: clamp to [0, 1] in training as well; evaluation always does.
        weights: a run folder, or a public file (.safetensors, .pth); `entry` is the mapping in it that is read, such as
            "model_ema1".
        map: a flow map: the network is told the length of a jump too, by an embedding that is zero at the start; the
            weights may be those of a velocity. A jump is one evaluation, guided where t is in the interval.
    """

    def __init__(
        self,
        size: Count = 256,
        patch: Count = 16,
        width: Count = 768,
        depth: Count = 12,
        heads: Count = 12,
        bottleneck: Count = 128,
        context: Count = 32,
        start: Count = 4,
        classes: Count = 1000,
        guidance: Positive = 3.0,
        interval: tuple[Fraction, Fraction] = (0.0, 0.9),
        noise_scale: Positive = 1.0,
        steps: Count = 50,
        solver: Solver = "heun",
        clamp: bool = False,
        weights: str | None = None,
        entry: str | None = None,
        map: bool = False,
    ):
        super().__init__(steps, solver)
        self.is_map, self.null = map, classes
        self.shape, self.classes, self.clamp, self.noise_scale = (3, size, size), classes, clamp, noise_scale
        self.guidance, self.interval = guidance, interval
        self.net = _Network(size, patch, width, depth, heads, bottleneck, classes, context, start, map=map)
        load(self, weights, entry, fresh=("net.h_embedder.",))

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a public file under the generator's names."""
        return follow(PUBLIC, state)

    def evaluate(self, x: Tensor, h: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        def towards(labels: Tensor) -> Tensor:
            return (x - self.net(x, 1 - t, labels, h)) / t.clamp(min=LEAST_TIME).view(-1, 1, 1, 1)

        return guided(towards, t, condition, self.net.null, self.guidance, self.interval)


presets(
    "jit",
    JiT,
    source="LTH14/JiT, jjiaweiyang/FD-Loss",
    rows={
        "jit_b_256": ("131M", {"guidance": 3.0}),
        "jit_l_256": ("459M", {"width": 1024, "depth": 24, "heads": 16, "start": 8, "guidance": 2.4}),
        "jit_h_256": (
            "953M",
            {"width": 1280, "depth": 32, "heads": 16, "start": 10, "bottleneck": 256, "guidance": 2.2},
        ),
    },
)
