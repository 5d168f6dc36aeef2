"""What an encoder takes, and the checks of what it is given."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rdm.errors import InputError, NonFiniteError

SLACK = 1e-4  # outside the range: rounding of a resize or of a half-precision decoder


@dataclass(frozen=True)
class Inputs:
    """Shape, type and range of the items that an encoder takes.

    Args:
        kind: plural noun for messages.
        shape: names (any size) and numbers (that size) of one item's dimensions; None for any shape.
        low, high: range of floating-point items; None for any.
        integer: items are whole numbers, tokens for one.
        remedy: what to do with items of another type or size.
        soft: the floating-point form of whole-number items, which carries a gradient; None for none.
        rate: samples a second of sound; None for any.
    """

    kind: str = "items"
    shape: tuple[str | int, ...] | None = None
    low: float | None = None
    high: float | None = None
    integer: bool = False
    remedy: str = "convert them"
    soft: "Inputs | None" = None
    rate: int | None = None

    def __str__(self) -> str:
        shape = "..." if self.shape is None else " ".join(map(str, self.shape))
        bounds = "" if self.low is None else f" in [{self.low:g}, {self.high:g}]"
        rate = "" if self.rate is None else f" of {self.rate:,} samples a second"
        return f'{self.kind} "n {shape}"{rate}{bounds}'

    def check(self, items: Tensor, owner: str) -> None:
        """Refuse another shape or type, or no items at all; reads no values.

        Raises:
            InputError: what `owner` takes, what came and the remedy.
        """
        if not isinstance(items, Tensor):
            raise InputError(f"{owner} takes a tensor of {self}; got {type(items).__name__}")
        if items.ndim == 0 or items.numel() == 0:
            raise InputError(f"{owner} takes {self}; got an empty batch of shape {tuple(items.shape)}")
        if self.soft is not None and items.is_floating_point():
            return self.soft.check(items, owner)
        if items.is_floating_point() == self.integer or items.is_complex():
            wanted = "whole numbers" if self.integer else "floating-point numbers"
            raise InputError(f"{owner} takes {self} as {wanted}; got {items.dtype}; {self.remedy}")
        if self.shape is None:
            return
        sizes = tuple(items.shape[1:])
        fits = len(sizes) == len(self.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(self.shape, sizes, strict=True)
        )
        if not fits:
            raise InputError(f"{owner} takes {self}; got shape {tuple(items.shape)}; {self.remedy}")

    def check_values(self, items: Tensor, owner: str) -> None:
        """Refuse values that are not finite or lie outside the range: for real and for evaluated items.

        Raises:
            NonFiniteError: NaN or infinity, with the number of items.
            InputError: values outside the range, with the range that came.
        """
        self.check(items, owner)
        if self.soft is not None and items.is_floating_point():
            return self.soft.check_values(items, owner)
        flat = items.detach().flatten(1)
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~torch.isfinite(flat)).any(1).sum())
            raise NonFiniteError(f"{owner}: NaN or infinity in {bad} of {len(items)} {self.kind}")
        if self.low is None or self.high is None:
            return
        if low < self.low - SLACK or high > self.high + SLACK:
            outside = int(((flat < self.low - SLACK) | (flat > self.high + SLACK)).any(1).sum())
            raise InputError(
                f"{owner} takes {self}; got values from {low:.4g} to {high:.4g}, outside in {outside} of {len(items)}; "
                f"{'correct' if self.integer else 'rescale or clamp'} them"
            )

    def outside(self, items: Tensor) -> float:
        """Share of the values that lie outside the range."""
        form = self.soft if self.soft is not None and items.is_floating_point() else self
        if form.low is None or form.high is None:
            return 0.0
        return float(((items < form.low - SLACK) | (items > form.high + SLACK)).float().mean())

    def clamp(self, items: Tensor) -> Tensor:
        """Items with their values moved into the range; the gradient of what is moved is 0."""
        form = self.soft if self.soft is not None and items.is_floating_point() else self
        return items if form.low is None or form.integer else items.clamp(form.low, form.high)


ANYTHING = Inputs(remedy="convert them, images to [0, 1]")


def images(channels: int = 3) -> Inputs:
    """Images "n c h w" in [0, 1], of any size."""
    remedy = f"give {channels} channels, 8-bit values divided by 255"
    return Inputs("images", (channels, "h", "w"), 0.0, 1.0, remedy=remedy)


def waveforms(rate: int | None = None) -> Inputs:
    """Sound "n samples" in [-1, 1], one channel, of any length, of `rate` samples a second where it matters."""
    remedy = "give one channel, 16-bit values divided by 32768"
    return Inputs("waveforms", ("samples",), -1.0, 1.0, remedy=remedy, rate=rate)


def tokens(vocabulary: int) -> Inputs:
    """Texts as token ids "n length" below `vocabulary`, or as soft tokens "n length vocabulary", probabilities."""
    remedy = f"give int64 ids, or probabilities over the {vocabulary} tokens"
    soft = Inputs("soft tokens", ("length", vocabulary), 0.0, 1.0, remedy=remedy)
    return Inputs("tokens", ("length",), 0.0, vocabulary - 1.0, integer=True, remedy=remedy, soft=soft)
