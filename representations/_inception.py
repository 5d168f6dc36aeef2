"""The Inception-v3 of FID, written out so that its public weights load by name; pooled features and logits of it."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from rdm.api import Representation
from representations._images import Preprocess
from representations._once import Once


def with_logits(features: Representation, name: str) -> Representation:
    """The class logits of an encoder's network; both take one pass of it."""
    own = features.module
    assert isinstance(own, InceptionEncoder)
    module = InceptionEncoder(own.prepare, own.network, "logits", own.pooled)
    return replace(features, name=name, module=module, settings={**features.settings, "output": "logits"})


class InceptionEncoder(nn.Module):
    """Preprocessing, the network, and pooled features or logits, of the pass of another encoder where it is given."""

    def __init__(self, prepare: Preprocess, network: "InceptionV3", output: str, pooled: Once | None = None):
        super().__init__()
        self.prepare, self.network, self.output = prepare, network, output
        self.pooled = pooled or Once(_Pooled(prepare, network), network)

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        pooled = self.pooled(images)
        return pooled @ self.network.fc.weight.T if self.output == "logits" else pooled

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"output={self.output!r}"


class _Pooled(NamedTuple):
    """Images to the mean of the last map."""

    prepare: Preprocess
    network: "InceptionV3"

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(self.prepare(images)).mean((2, 3))


class Conv(nn.Module):
    """Convolution, batch normalisation (epsilon 1e-3), ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int | tuple[int, int], stride: int = 1, padding: bool = True):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = (sides[0] // 2, sides[1] // 2) if padding else (0, 0)
        self.conv = nn.Conv2d(inside, outside, sides, stride, around, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.bn = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return self.bn(self.conv(x)).relu_()


def _mean(x: Tensor) -> Tensor:
    """3x3 average that does not count the border: what FID's graph has and later networks have not."""
    return avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Square(nn.Module):
    """Mixed_5b to 5d: 1x1, 5x5, double 3x3 and pooling."""

    def __init__(self, inside: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(inside, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inside, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean(x))], 1
        )


class Shrink(nn.Module):
    """Mixed_6a: to half the side."""

    def __init__(self):
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, 2, padding=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(288, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2, padding=False)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, 2)], 1)


class Cross(nn.Module):
    """Mixed_6b to 6e: 7x7 kernels as rows and columns."""

    def __init__(self, width: int):
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, width, 1), Conv(width, width, row)
        self.branch7x7_3 = Conv(width, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, width, 1), Conv(width, width, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(width, width, row), Conv(width, width, column)
        self.branch7x7dbl_5 = Conv(width, 192, row)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], 1)


class ShrinkAgain(nn.Module):
    """Mixed_7a: to half the side."""

    def __init__(self):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, 2, padding=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, 2, padding=False)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        cross = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), cross, max_pool2d(x, 3, 2)], 1)


class Wide(nn.Module):
    """Mixed_7b and 7c: rows and columns side by side; the last block of FID's graph pools by maximum."""

    def __init__(self, inside: int, *, maximum: bool):
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Conv(inside, 320, 1)
        self.branch3x3_1 = Conv(inside, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(inside, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = max_pool2d(x, 3, 1, 1) if self.maximum else _mean(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class InceptionV3(nn.Module):
    """The trunk to the last map "n 2048 8 8", and the classifier's weights, under the names of the public file."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, padding=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padding=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.MaxPool_1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padding=False)
        self.MaxPool_2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = Square(192, 32), Square(256, 64), Square(288, 64)
        self.Mixed_6a = Shrink()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = Cross(128), Cross(160), Cross(160), Cross(192)
        self.Mixed_7a = ShrinkAgain()
        self.Mixed_7b, self.Mixed_7c = Wide(1280, maximum=False), Wide(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images at 299 to the last map."""
        for name, layer in self.named_children():
            if name != "fc":
                x = layer(x)
        return x
