"""Frozen random convolutions: features without any training."""

from functools import partial

import torch
from torch import Tensor, nn

from rdm.api import Inputs, Representation, images, representations


@representations.register("random_convolutions", examples=({"width": 4, "channels": 3}, {"width": 4, "channels": None}))
def random_convolutions(
    channels: int | None = 1, width: int = 32, layers: int = 2, seed: int = 0, name: str = "random_convolutions"
) -> Representation:
    """Spatial means and standard deviations after each layer of a convolutional network with random weights.

    Weights are He-normal (He et al. 2015) from `seed`, drawn on the CPU; 3x3 kernels, leaky ReLU, stride 2 after the
    first layer. Random features are a weak but unbiased judge that nothing was trained to please. `channels=None` takes
    as many as the reference has (`Representation.fitted`).

    Shapes: n c h w -> n (2 width layers). Cost: one small forward pass.
    """
    options = {"width": width, "layers": layers, "seed": seed}
    settings = {"channels": channels, **options}
    if channels is None:
        inputs = Inputs("images", ("c", "h", "w"), 0.0, 1.0, remedy="divide 8-bit values by 255")
        return Representation(name, None, settings, fit=partial(_for_items, **options), inputs=inputs)
    return Representation(name, _RandomConvolutions(channels, **options), settings, inputs=images(channels))


def _for_items(items: Tensor, **options: int) -> nn.Module:
    return _RandomConvolutions(items.shape[1], **options)


class _RandomConvolutions(nn.Module):
    def __init__(self, channels: int, width: int, layers: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.strides = [1] + [2] * (layers - 1)
        for i in range(layers):
            fan_in = 9 * (channels if i == 0 else width)
            kernel = torch.randn(width, fan_in // 9, 3, 3, generator=generator) * (2 / fan_in) ** 0.5
            self.register_buffer(f"kernel{i}", kernel)

    def forward(self, images: Tensor) -> Tensor:
        features = []
        x = images * 2 - 1
        for i, stride in enumerate(self.strides):
            x = nn.functional.conv2d(x, self.get_buffer(f"kernel{i}").to(x), stride=stride, padding=1)
            x = nn.functional.leaky_relu(x, 0.1)
            flat = x.flatten(2)
            mean = flat.mean(2)
            variance = (flat - mean[:, :, None]).square().mean(2)
            features += [mean, (variance + 1e-6).sqrt()]
        return torch.cat(features, 1)
