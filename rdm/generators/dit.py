"""SiT and DiT: one transformer on patches of latents, trained on velocities or on the noise of a diffusion."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rdm.api import Count, Fraction, Positive, Solver, generators
from rdm.generators.parts.guidance import guided
from rdm.generators.parts.interval import IntervalEmbedding, MayBeMap
from rdm.generators.parts.latent import SD_VAE, Latents
from rdm.generators.parts.presets import Rule, follow, load, presets
from rdm.generators.parts.transformer import (
    LabelEmbedding,
    PatchEmbedding,
    TimeEmbedding,
    attend,
    modulate,
    run,
    sincos_positions,
    unpatchify,
    xavier_linears,
    zero,
)

PUBLIC = (Rule(r"^(?!net\.)", "net.", "public files hold the network alone"),)
GUIDED = 3  # of the four channels: what the public samplers of both models guide


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)))


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm(x), shift2, scale2))


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(modulate(self.norm(x), *self.adaLN_modulation(c).chunk(2, -1)))


class _Network(nn.Module):
    """The diffusion transformer: adaptive layer norms from time and class, fixed positions.

    Its public files predict twice the channels, of which the second half is the unused variance.
    """

    def __init__(
        self, shape: tuple[int, ...], patch: int, width: int, depth: int, heads: int, classes: int, *,
        map: bool,
    ):  # fmt: skip
        super().__init__()
        channels, size, _ = shape
        self.patch, self.channels, self.null = patch, channels, classes
        self.x_embedder, self.t_embedder = PatchEmbedding(channels, patch, width), TimeEmbedding(width)
        self.y_embedder, self.h_embedder = LabelEmbedding(classes, width), IntervalEmbedding(width) if map else None
        self.pos_embed = nn.Parameter(sincos_positions(width, size // patch), requires_grad=False)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.final_layer = _Final(width, 2 * channels * patch**2)
        xavier_linears(self.blocks)
        zero(self.final_layer, *(block.adaLN_modulation for block in self.blocks))  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, h: Tensor) -> Tensor:
        c = self.t_embedder(t) + self.y_embedder(labels)
        if self.h_embedder is not None:
            c = c + self.h_embedder(h)
        tokens = run(self.blocks, self.x_embedder(x) + self.pos_embed, c)
        return unpatchify(self.final_layer(tokens, c), self.patch, 2 * self.channels)[:, : self.channels]


_SMALL = {"shape": (4, 4, 4), "width": 16, "depth": 1, "heads": 2, "steps": 2, "decoder": "none"}


@generators.register("sit", examples=(_SMALL,))
class SiT(Latents, MayBeMap):
    """SiT: the velocity of latents of the Stable Diffusion autoencoder (8 pixels a latent), data at t = 1 inside.

    Source: Ma et al. (2024), "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
    Transformers". Guidance is a second forward pass; as in the public sampler it acts on the first three channels.

    Shapes: noise n c h w, condition n (labels; None for no class) -> images n 3 8h 8w. Cost: 2 flops a parameter and
    token for each forward pass: one a step of Euler, two of Heun, twice as many where guided; and the decoder's.
    Raises: InputError: weights of another network; no decoder on this machine.

    Args:
        shape: of a latent; with decoder "none" of an item in [-1, 1], such as a small picture.
        guidance, interval: scale (1 is none) and the times in which it acts, t = 1 being noise.
        decoder: "pretrained" (in the HuggingFace cache), "random", "none" (items are the flow's), or a folder of
            diffusers; by default "pretrained" where weights are given, else "random".
        slices: latents decoded at a time.
        weights: a run folder, or a public file (.safetensors, .pt); `entry` is the mapping in it that is read, such as
            "ema".
        map: a flow map: the network is told the length of a jump too, by an embedding that is zero at the start; the
            weights may be those of a velocity. A jump is one evaluation, guided where t is in the interval.
    """

    vae = SD_VAE

    def __init__(
        self,
        shape: tuple[Count, Count, Count] = (4, 32, 32),
        patch: Count = 2,
        width: Count = 1152,
        depth: Count = 28,
        heads: Count = 16,
        classes: Count = 1000,
        guidance: Positive = 1.5,
        interval: tuple[Fraction, Fraction] = (0.0, 1.0),
        steps: Count = 125,
        solver: Solver = "heun",
        clamp: bool = False,
        decoder: str | None = None,
        slices: Count = 8,
        weights: str | None = None,
        entry: str | None = None,
        map: bool = False,
    ):
        super().__init__(steps, solver)
        self.is_map, self.null = map, classes
        self.shape, self.classes, self.clamp = tuple(shape), classes, clamp
        self.guidance, self.interval = guidance, interval
        self.net = _Network(self.shape, patch, width, depth, heads, classes, map=map)
        load(self, weights, entry, fresh=("net.h_embedder.",))
        self.open_decoder(decoder, trained=weights is not None, slices=slices)

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a public file under the generator's names."""
        return follow(PUBLIC, state)

    def evaluate(self, x: Tensor, h: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        def away(labels: Tensor) -> Tensor:
            return self.predicted(x, h, t, labels)

        return guided(away, t, condition, self.net.null, self.guidance, self.interval, GUIDED)

    def predicted(self, x: Tensor, h: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Velocity by the network, whose own runs from noise at 0 to data at 1."""
        return -self.net(x, 1 - t, labels, h)


@generators.register("dit", examples=(_SMALL,))
class DiT(SiT):
    """DiT: the noise that a diffusion of 1,000 steps added, read as the velocity of a straight path.

    Source: Peebles and Xie (2023), "Scalable Diffusion Models with Transformers". A state of the straight path, divided
    by sqrt(t^2 + (1 - t)^2), is one of the diffusion at the step of equal signal to noise, interpolated between steps.
    The diffusion ends before pure noise: nearer to t = 1 than its last step the velocity is that of its last step.

    Shapes: noise n c h w, condition n (labels; None for no class) -> images n 3 8h 8w. Cost: as `sit`.
    Raises: InputError: weights of another network; no decoder on this machine.
    """

    def predicted(self, x: Tensor, h: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Velocity z - x_0 from the predicted z."""
        kept = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device=x.device).neg().add(1).log().cumsum(0)
        noise_to_signal = (kept.neg().exp() - 1).sqrt()
        last = float((kept[-1].neg().exp() - 1).sqrt()) if not kept.is_meta else 157.4
        t = t.clamp(max=last / (1 + last))
        ratio = (t / (1 - t)).double()
        above = torch.searchsorted(noise_to_signal, ratio).clamp(1, 999)
        low, high = noise_to_signal[above - 1].log(), noise_to_signal[above].log()
        step = above - 1 + ((ratio.log() - low) / (high - low)).clamp(0, 1)
        t = t.view(-1, *[1] * (x.ndim - 1))
        z = self.net(x / (t.square() + (1 - t).square()).sqrt(), step.to(x.dtype), labels, h)
        return (z - x) / (1 - t)


presets(
    "sit",
    SiT,
    source="",
    rows={
        "sit_s_256": ("33M", {"width": 384, "depth": 12, "heads": 6}),
        "sit_b_256": ("130M", {"width": 768, "depth": 12, "heads": 12}),
        "sit_l_256": ("458M", {"width": 1024, "depth": 24, "heads": 16}),
    },
)
presets("sit", SiT, source="willisma/SiT", rows={"sit_xl_256": ("675M", {})})
presets("dit", DiT, source="facebook/DiT", rows={"dit_xl_256": ("675M", {})})
