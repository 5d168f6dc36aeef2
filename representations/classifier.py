"""Features of small classifiers that `rdm train` makes in seconds, and the networks themselves."""

from typing import Literal

from torch import Tensor, nn

from rdm.api import InputError, Inputs, Representation, load_weights, networks, representations
from representations._classifier import Classifier


@representations.register("classifier", needs="a run folder or checkpoint of `rdm train` with the same network")
def classifier(
    weights: str,
    network: str | Classifier = "conv_classifier",
    output: Literal["penultimate", "logits"] = "penultimate",
    name: str | None = None,
) -> Representation:
    """Penultimate features (or logits) of a classifier trained by `rdm train`, read from its run folder.

    `network` is a registered name, or the network itself where it takes other hyperparameters than the defaults.

    Shapes: n ... -> n d, items as the network takes them. Cost: one small forward pass.
    Raises: InputError: no weights there, or of another network.
    """
    if output not in ("penultimate", "logits"):
        raise InputError(f'output must be "penultimate" or "logits"; got {output!r}')
    module = networks.build(network) if isinstance(network, str) else network
    load_weights(module, weights)
    settings = {"network": type(module).__name__, "output": output}
    default = network if isinstance(network, str) else type(module).__name__
    encoder = module if output == "logits" else _Penultimate(module)
    return Representation(name or default, encoder, settings, inputs=module.inputs)


def _square(channels: int, side: int) -> Inputs:
    remedy = f"resize them to {side} x {side}, divide 8-bit values by 255"
    return Inputs("images", (channels, side, side), 0.0, 1.0, remedy=remedy)


class _Penultimate(nn.Module):
    def __init__(self, network: Classifier):
        super().__init__()
        self.network = network

    def forward(self, items: Tensor) -> Tensor:
        return self.network.features(items)


@networks.register("conv_classifier", examples=({"side": 8, "width": 4},))
class ConvClassifier(Classifier):
    """Three 3x3 convolutions with group normalisation, one hidden layer: images n c h w -> logits n classes."""

    def __init__(self, channels: int = 1, side: int = 8, classes: int = 10, width: int = 32, features: int = 64):
        super().__init__()
        self.inputs = _square(channels, side)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.GroupNorm(4, 2 * width),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * width * ((side + 1) // 2) ** 2, features),
            nn.GELU(),
        )
        self.head = nn.Linear(features, classes)

    def features(self, items: Tensor) -> Tensor:
        """Activations of the hidden layer."""
        return self.trunk(items * 2 - 1)


@networks.register("mixer_classifier", examples=({"side": 8, "width": 8},))
class MixerClassifier(Classifier):
    """An MLP-mixer over 2x2 patches (Tolstikhin et al. 2021), no convolution: images n c h w -> logits n classes."""

    def __init__(self, channels: int = 1, side: int = 8, classes: int = 10, width: int = 48, depth: int = 3):
        super().__init__()
        self.inputs = _square(channels, side)
        tokens = (side // 2) ** 2
        self.embed = nn.Linear(4 * channels, width)
        self.blocks = nn.ModuleList(_MixerBlock(tokens, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def features(self, items: Tensor) -> Tensor:
        """Mean of the final tokens."""
        patches = nn.functional.pixel_unshuffle(items * 2 - 1, 2).flatten(2).transpose(1, 2)
        x = self.embed(patches)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.across = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norms[1](x))
