"""The freest generator there is: its weights are the pictures."""

from typing import Literal

import torch
from torch import Tensor, nn

from rdm.api import Count, Data, Generator, InputError, Nonnegative, Numbers, generators

EDGE = 0.01  # of the range, which a picture's start keeps from its ends


class Each(Numbers):
    """Every number once before any comes again, in random order."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Numbers "n": all different where n is no more than there are."""
        assert self.count is not None
        rounds = -(-n // self.count)
        orders = [torch.randperm(self.count, generator=generator, device=generator.device) for _ in range(rounds)]
        return torch.cat(orders)[:n]


@generators.register("free_pictures")
class FreePictures(Generator):
    """As many pictures as classes, each a weight of its own: class k is picture k, and noise does nothing.

    A population of `count` holds every picture once. Weights are logits, so that pictures stay within 0 and 1.

    Shapes: noise n, classes n -> pictures n c h w. Cost: none beside the pictures.
    Raises: InputError: fewer real pictures than are to be made.

    Args:
        data: real pictures; those to start from, and the spoiling, are drawn as the run's seed says.
        count: how many.
        noise: standard deviation of the Gaussian noise that the start is spoiled by.
        start: "real", or "noise": pictures of nothing but uniform noise.
    """

    def __init__(
        self, data: Data, count: Count = 256, noise: Nonnegative = 0.1, start: Literal["real", "noise"] = "real"
    ):
        super().__init__()
        if len(data) < count:
            raise InputError(f"free_pictures: expected at least {count} real pictures; {data.name} has {len(data)}")
        self.shape, self.classes = (), count
        (part,) = data.read([torch.randperm(len(data))[:count].tolist()])
        items = part.items + noise * torch.randn_like(part.items)
        items = torch.rand_like(items) if start == "noise" else items
        self.logits = nn.Parameter(items.clamp(EDGE, 1 - EDGE).logit())

    @property
    def conditions(self) -> Each:
        """Every picture once."""
        return Each(self.classes)

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """The pictures that are asked for."""
        assert condition is not None
        return self.logits[condition.long()].sigmoid()
