"""Preprocessing of images inside an encoder: resize and normalise, differentiable, in the encoder's own precision."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Resize = Literal["bicubic", "bilinear", "clean", "tensorflow"]


class Preprocess(nn.Module):
    """Images "n c h w" in [0, 1] -> (x - mean) / std at a square size, resized only where the size differs.

    resize: "bicubic" and "bilinear" with antialias (as Pillow); "clean" is bicubic without the values that overshoot
    [0, 1], as clean-fid resizes; "tensorflow" is TensorFlow 1's bilinear, without
    antialias and without half-pixel centres, which FID's Inception was defined with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        resize: Resize = "bicubic",
        *,
        bgr: bool = False,
    ):
        super().__init__()
        self.size, self.bgr = size, bgr
        self.resize: Resize = resize
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Resized and normalised."""
        images = images.to(self.mean.dtype)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            images = resized(images, self.size, self.resize)
        if images.device.type == "cpu":  # depthwise and wide convolutions run up to three times as fast there
            images = images.contiguous(memory_format=torch.channels_last)
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"size={self.size}, resize={self.resize!r}, bgr={self.bgr}"


def resized(images: Tensor, size: int, how: Resize) -> Tensor:
    """Images "n c h w" at a square size."""
    if how == "tensorflow":
        vertical, horizontal = (_tensorflow_weights(side, size).to(images) for side in images.shape[2:])
        return vertical @ images @ horizontal.T
    if how == "clean":
        return resized(images, size, "bicubic").clamp(0, 1)
    return nn.functional.interpolate(images, (size, size), mode=how, align_corners=False, antialias=True)


def _tensorflow_weights(side: int, size: int) -> Tensor:
    """Interpolation matrix "size side": output i reads the input at i side / size."""
    place = torch.arange(size) * (side / size)
    below = place.floor().long().clamp_max(side - 1)
    share = (place - below)[:, None]
    eye = torch.eye(side)
    return eye[below] * (1 - share) + eye[(below + 1).clamp_max(side - 1)] * share
