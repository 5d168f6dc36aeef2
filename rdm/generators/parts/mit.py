"""The transformer of pMF and iMF."""

import math

import torch
from torch import Tensor, nn

from rdm.generators.parts.transformer import (
    BottleneckPatchEmbedding,
    PatchEmbedding,
    attend,
    cells,
    heads_of,
    rotate,
    rotations,
    run,
    sinusoids,
    unpatchify,
)

CLASS, GUIDANCE, END, TIME = 8, 4, 2, 4  # tokens before the patches: class, guidance, two ends of its interval, time
PREFIX = CLASS + GUIDANCE + 2 * END + TIME


class _Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, gain: float = 0.32):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        nn.init.normal_(self.linear.weight, std=gain / math.sqrt(inputs))
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class _Number(nn.Module):
    """A number's embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            _Linear(256, width, bias=True, gain=1.0), nn.SiLU(), _Linear(width, width, bias=True, gain=1.0)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoids(t).to(next(self.parameters()).dtype))


class _Table(nn.Module):
    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))


class _Labels(nn.Module):
    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = _Table(classes, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table.embedding(labels)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (_Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        q, k, v = (heads_of(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation), v))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w3, self.w2 = _Linear(width, hidden), _Linear(width, hidden), _Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        hidden = int(width * 8 / 3)
        hidden = hidden if width <= 1024 else math.ceil(hidden / 8) * 8
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width, hidden)
        self.attn_scale, self.mlp_scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation) * self.attn_scale
        return x + self.mlp(self.norm2(x)) * self.mlp_scale


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(width, eps=1e-6), _Linear(width, outputs, bias=True, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class MiT(nn.Module):
    """The transformer of improved MeanFlow: conditions are tokens before the patches, and the time t itself is none.

    Source: Geng et al. (2025), "Improved Mean Flows"; pixels: Lu et al. (2026), "One-step Latent-free Image Generation
    with Pixel Mean Flows". RMS norms, SwiGLU, normalised queries and keys, rotary positions, gates that begin at zero.
    A plane (`pixels`) has two axes of rotation, leaves the prefix unturned and learns a position for every token; a
    sequence turns all tokens along one axis.
    """

    def __init__(
        self, shape: tuple[int, ...], patch: int, width: int, depth: int, heads: int, bottleneck: int | None,
        classes: int, head_depth: int, *, pixels: bool,
    ):  # fmt: skip
        super().__init__()
        channels, size, _ = shape
        grid = size // patch
        self.patch, self.channels, self.null = patch, channels, classes
        self.x_embedder = (
            BottleneckPatchEmbedding(channels, patch, bottleneck, width, bias=True)
            if bottleneck
            else PatchEmbedding(channels, patch, width)
        )
        self.h_embedder, self.omega_embedder = _Number(width), _Number(width)
        self.cfg_t_start_embedder, self.cfg_t_end_embedder = _Number(width), _Number(width)
        self.y_embedder = _Labels(classes, width)

        def tokens(count: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(count, width) / math.sqrt(width))

        self.time_tokens, self.class_tokens, self.omega_tokens = tokens(TIME), tokens(CLASS), tokens(GUIDANCE)
        self.t_min_tokens, self.t_max_tokens = tokens(END), tokens(END)
        self.pos_embed = nn.Parameter(torch.randn(1, PREFIX + grid**2, width) * 0.02) if pixels else None
        self.shared_blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth - head_depth))
        self.u_heads = nn.ModuleList(_Block(width, heads) for _ in range(head_depth))
        self.u_final_layer = _Final(width, patch**2 * channels)
        self.rotation: Tensor
        axis = torch.arange(PREFIX + grid**2)[:, None]
        turned = rotations(width // heads, cells(grid), PREFIX) if pixels else rotations(width // heads, axis)
        self.register_buffer("rotation", turned, persistent=False)

    def forward(self, x: Tensor, h: Tensor, omega: Tensor, start: Tensor, end: Tensor, labels: Tensor) -> Tensor:
        """State "n c h w", length h = t - r of the jump, guidance and its interval, labels, all "n"."""
        tokens = torch.cat(
            [
                self.class_tokens + self.y_embedder(labels)[:, None],
                self.omega_tokens + self.omega_embedder(1 - 1 / omega)[:, None],
                self.t_min_tokens + self.cfg_t_start_embedder(start)[:, None],
                self.t_max_tokens + self.cfg_t_end_embedder(end)[:, None],
                self.time_tokens + self.h_embedder(h)[:, None],
                self.x_embedder(x),
            ],
            1,
        )
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        blocks = [*self.shared_blocks, *self.u_heads]
        tokens = run(blocks, tokens, self.rotation)
        return unpatchify(self.u_final_layer(tokens[:, PREFIX:]), self.patch, self.channels)
