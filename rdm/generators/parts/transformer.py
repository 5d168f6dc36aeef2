"""Parts that the transformers share: patches, positions, time, attention, and how a stack of blocks is run."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """One projection of every patch, "n c h w -> n tokens width"."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        flat_xavier(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class BottleneckPatchEmbedding(nn.Module):
    """The same through a narrow layer (JiT and pMF: pixels of a patch are many and correlated)."""

    def __init__(self, channels: int, patch: int, bottleneck: int, width: int, *, bias: bool):
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=bias)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)
        flat_xavier(self.proj1)
        flat_xavier(self.proj2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, row by row."""
        return self.proj2(self.proj1(x)).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Two layers on sines and cosines of a number."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        """Numbers "n" -> "n width"."""
        return self.mlp(sinusoids(t).to(next(self.parameters()).dtype))


class LabelEmbedding(nn.Module):
    """A vector a class, and one more for no class."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels "n" -> "n width"."""
        return self.embedding_table(labels)


def sinusoids(t: Tensor, size: int = 256, longest: float = 10000.0) -> Tensor:
    """Cosines, then sines, of t at frequencies from 1 down to nearly 1/longest: "n -> n size"."""
    half = size // 2
    frequencies = torch.exp(-math.log(longest) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    phase = t.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], 1)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed positions of a grid's cells, (1, grid * grid, width): first half the column, second half the row."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([phase.sin(), phase.cos()], 1)
    cells = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)], 1)
    return cells[None].float()


def rotations(size: int, positions: Tensor, prefix: int = 0) -> Tensor:
    """Angles of rotary positions, (prefix + tokens, size / 2), as cosines and sines stacked first.

    Positions "tokens axes" share the pairs of a head of `size` numbers evenly among the axes. Prefix tokens stay as
    they are.
    """
    tokens, axes = positions.shape
    pairs = size // 2 // axes
    frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    angles = (positions.float()[:, :, None] * frequencies).reshape(tokens, axes * pairs)
    angles = torch.cat([torch.zeros(prefix, axes * pairs), angles])
    return torch.stack([angles.cos(), angles.sin()])


def cells(grid: int) -> Tensor:
    """Row and column of every cell of a grid, row by row."""
    return torch.cartesian_prod(torch.arange(grid), torch.arange(grid))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of "n heads tokens size" by the angles of their token."""
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = rotation.to(wide).unbind(0)
    a, b = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, "n heads tokens size -> n tokens (heads size)"."""
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """Split "n tokens (heads size)" into "n heads tokens size"."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Pictures of square grids of tokens, "n (h w) (p q c) -> n c (h p) (w q)"."""
    n, count, _ = tokens.shape
    grid = math.isqrt(count)
    x = tokens.reshape(n, grid, grid, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(n, channels, grid * patch, grid * patch)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale every token of an item alike."""
    return x * (1 + scale[:, None]) + shift[:, None]


def run(blocks: Iterable[nn.Module], x: Tensor, *context: Tensor) -> Tensor:
    """Blocks one after the other."""
    for block in blocks:
        x = block(x, *context)
    return x


def flat_xavier(layer: nn.Conv2d) -> None:
    """Initialise a projection of patches as the linear layer that it is."""
    nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def xavier_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in all linear layers of a module."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero(*layers: nn.Module) -> None:
    """Zero a layer's weights and biases."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
