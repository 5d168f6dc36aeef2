"""pMF and iMF: flow maps of one transformer, with guidance as an input."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rdm.api import Count, FlowMap, Fraction, Positive, generators
from rdm.generators.parts.latent import SD_VAE, Latents
from rdm.generators.parts.mit import MiT
from rdm.generators.parts.presets import Rule, follow, load, presets

LEAST_TIME = 0.05  # below it, differences between state and data are divided by this time instead

PUBLIC = (
    Rule(r"\._flax_(linear|embedding)\.", r".\1.", "names of the JAX code that Lyy0725/iMF and /pMF were made from"),
    Rule(r"_tokens$", "_tokens", "Lyy0725/pMF stores one more axis of size 1", lambda x: x.squeeze(0)),
    Rule(r"rope_freqs", None, "angles of positions are computed"),
    Rule(r"^net\.v_(heads|final_layer)\.", None, "the auxiliary head serves training from scratch"),
)


class _MiTGenerator(FlowMap):
    """What pMF and iMF share: guidance and its interval are inputs of the network, fixed for a whole run."""

    net: MiT
    guidance: float
    interval: tuple[float, float]

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a public file under the generator's names."""
        return follow(PUBLIC, state)

    def predict(self, x: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
        """The network's output for jumps of length h, at the generator's guidance."""
        if condition is None:
            condition = torch.full((len(x),), self.net.null, device=x.device)
        omega, start, end = (torch.full_like(h, value) for value in (self.guidance, *self.interval))
        return self.net(x, h, omega, start, end, condition)


@generators.register(
    "pmf", examples=({"size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "head_depth": 1, "bottleneck": 4},)
)
class PixelMeanFlow(_MiTGenerator):
    """pMF: the flow map of pixels, whose network predicts the data.

    The average velocity is (x - prediction) / max(t, 0.05), so that one step from noise is the prediction itself.

    Shapes: noise n 3 size size, condition n (labels; None for no class) -> images n 3 size size. Cost: one forward
    pass a step, 2 flops a parameter and token.
    Raises: InputError: weights of another network.

    Args:
        guidance, interval: inputs of the network, in the published scale (1 is none).
        noise_scale: deviation of the noise in units of pictures in [-1, 1].
        clamp: clamp to [0, 1] in training as well; evaluation always does.
        weights: a run folder, or a public file (.safetensors, .pth); `entry` is the mapping in it that is read.
    """

    def __init__(
        self,
        size: Count = 256,
        patch: Count = 16,
        width: Count = 768,
        depth: Count = 16,
        heads: Count = 12,
        bottleneck: Count = 128,
        classes: Count = 1000,
        head_depth: Count = 8,
        guidance: Positive = 8.5,
        interval: tuple[Fraction, Fraction] = (0.1, 0.7),
        noise_scale: Positive = 1.0,
        steps: Count = 1,
        clamp: bool = False,
        weights: str | None = None,
        entry: str | None = None,
    ):
        super().__init__(steps)
        self.shape, self.classes, self.clamp, self.noise_scale = (3, size, size), classes, clamp, noise_scale
        self.guidance, self.interval, self.null = guidance, interval, classes
        self.net = MiT(
            self.shape, patch, width, depth, heads, bottleneck, classes, head_depth,
            pixels=True,
        )  # fmt: skip
        load(self, weights, entry)

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        away = x - self.predict(x, t - r, condition)
        return away / t.clamp(min=LEAST_TIME).view(-1, 1, 1, 1)


@generators.register(
    "imf",
    examples=({"size": 16, "patch": 1, "width": 16, "depth": 2, "heads": 2, "head_depth": 1, "decoder": "none"},),
)
class ImprovedMeanFlow(Latents, _MiTGenerator):
    """iMF: the flow map of latents of the Stable Diffusion autoencoder (8 pixels a latent), standardised by channel.

    Shapes: noise n 4 size/8 size/8, condition n (labels; None for no class) -> images n 3 size size. Cost: one forward
    pass a step, 2 flops a parameter and token, and the decoder's, 2.5 Tflops a picture of 256.
    Raises: InputError: weights of another network; no decoder on this machine.

    Args:
        guidance, interval: inputs of the network, in the published scale (1 is none).
        decoder: "pretrained" (in the HuggingFace cache), "random", "none" (items are latents), or a folder of
            diffusers; by default "pretrained" where weights are given, else "random".
        slices: latents decoded at a time.
        weights: a run folder, or a public file (.safetensors, .pth); `entry` is the mapping in it that is read.
    """

    vae = SD_VAE._replace(
        mean=(0.86488, -0.27787343, 0.21616915, 0.3738409), scale=(4.85503674, 5.31922414, 3.93725398, 3.9870003)
    )

    def __init__(
        self,
        size: Count = 256,
        patch: Count = 2,
        width: Count = 768,
        depth: Count = 12,
        heads: Count = 12,
        classes: Count = 1000,
        head_depth: Count = 8,
        guidance: Positive = 8.0,
        interval: tuple[Fraction, Fraction] = (0.4, 0.65),
        steps: Count = 1,
        clamp: bool = False,
        decoder: str | None = None,
        slices: Count = 8,
        weights: str | None = None,
        entry: str | None = None,
    ):
        super().__init__(steps)
        self.shape, self.classes, self.clamp = (4, size // 8, size // 8), classes, clamp
        self.guidance, self.interval, self.null = guidance, interval, classes
        self.net = MiT(
            self.shape, patch, width, depth, heads, None, classes, head_depth,
            pixels=False,
        )  # fmt: skip
        load(self, weights, entry)
        self.open_decoder(decoder, trained=weights is not None, slices=slices)

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        return self.predict(x, t - r, condition)


_B = {"width": 768, "depth": 16, "heads": 12, "bottleneck": 128}
_L = {"width": 1024, "depth": 32, "heads": 16, "bottleneck": 128}
_H = {"width": 1280, "depth": 48, "heads": 16, "bottleneck": 256}
_512 = {"size": 512, "patch": 32}

# Numbers of parameters are those of the public code; FD-loss's table says 935M for H, and gives 256's numbers for 512.
presets(
    "pmf",
    PixelMeanFlow,
    source="Lyy0725/pMF, jjiaweiyang/FD-Loss",
    rows={
        "pmf_b_256": ("118M", {**_B, "guidance": 8.5, "interval": (0.1, 0.7)}),
        "pmf_l_256": ("410M", {**_L, "guidance": 7.0, "interval": (0.2, 0.7)}),
        "pmf_h_256": ("956M", {**_H, "guidance": 7.0, "interval": (0.2, 0.6), "noise_scale": 2.0}),
        "pmf_b_512": ("120M", {**_B, **_512, "guidance": 6.5, "interval": (0.1, 0.7), "noise_scale": 2.0}),
        "pmf_l_512": ("413M", {**_L, **_512, "guidance": 7.5, "interval": (0.2, 0.6), "noise_scale": 4.0}),
        "pmf_h_512": ("959M", {**_H, **_512, "guidance": 5.5, "interval": (0.1, 0.6), "noise_scale": 4.0}),
    },
)
presets(
    "imf",
    ImprovedMeanFlow,
    source="Lyy0725/iMF, jjiaweiyang/FD-Loss",
    rows={
        "imf_b_256": ("89M", {"guidance": 8.0, "interval": (0.4, 0.65)}),
        "imf_l_256": ("409M", {"width": 1024, "depth": 32, "heads": 16, "guidance": 10.5, "interval": (0.4, 0.6)}),
        "imf_xl_256": ("610M", {"width": 1024, "depth": 48, "heads": 16, "guidance": 8.0, "interval": (0.42, 0.62)}),
    },
)
presets(
    "imf",
    ImprovedMeanFlow,
    source="Lyy0725/iMF",
    rows={"imf_m_256": ("174M", {"depth": 24, "guidance": 10.5, "interval": (0.4, 0.6)})},
)
