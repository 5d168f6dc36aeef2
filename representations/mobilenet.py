"""MobileNet v1, written out: small enough to judge pictures anywhere."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import pad

from rdm.api import Representation, images, load_strictly, read_weights, representations
from representations._images import Preprocess
from representations._weights import RANDOM, origin, untrained, weights_file

STAGES = (64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024)  # widths of the blocks; a stage halves the side


@representations.register("mobilenet", examples=({"weights": RANDOM, "width": 0.25, "size": 64},))
def mobilenet(
    weights: str,
    width: float = 1.0,
    size: int = 224,
    sha256: str | None = None,
    name: str = "mobilenet",
) -> Representation:
    """Pooled features of MobileNet v1 (Howard et al. 2017), under the tensor names of timm.

    `width` multiplies the channels, TensorFlow's padding, images mapped to [-1, 1] at `size`. weights: a file, whose
    `sha256` may be demanded (its classifier is left out), or "random", untrained.

    Shapes: n 3 h w -> n (1024 width). Cost: 1.1 GFLOP an image at width 1 and size 224.

    Raises:
        InputError: no weights there.
        MismatchError: weights of another architecture, with the first ten tensors; a file of another hash.
    """
    path = weights_file(weights, sha256, name, lambda: Path(weights))
    network = untrained(lambda: MobileNetV1(width))
    if path is not None:
        state = {key: value for key, value in read_weights(path, name).items() if not key.startswith("classifier.")}
        load_strictly(network, state, source=path, owner=name)
    settings = {"width": width, "size": size, **origin(path)}
    module = nn.Sequential(Preprocess(size, (0.5,), (0.5,), "bilinear"), network)
    return Representation(name, module, settings, inputs=images())


class MobileNetV1(nn.Module):
    """The trunk and the spatial mean."""

    def __init__(self, width: float):
        super().__init__()
        channels = round(32 * width)
        self.conv_stem = nn.Conv2d(3, channels, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for k, widths in enumerate(STAGES):
            blocks = []
            for i, each in enumerate(widths):
                stride = 2 if i == 0 and k > 0 else 1
                blocks.append(Separable(channels, round(each * width), stride))
                channels = round(each * width)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images to features."""
        x = self.bn1(self.conv_stem(same(images, 2))).clamp(0, 6)
        return self.blocks(x).mean((2, 3))


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each normalised, with ReLU6."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv_dw = nn.Conv2d(inside, inside, 3, stride, groups=inside, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv_pw = nn.Conv2d(inside, outside, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        x = self.bn1(self.conv_dw(same(x, self.stride))).clamp(0, 6)
        return self.bn2(self.conv_pw(x)).clamp(0, 6)


def same(x: Tensor, stride: int, kernel: int = 3) -> Tensor:
    """TensorFlow's "same" padding, which puts the odd row and column behind."""
    rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
    return pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
