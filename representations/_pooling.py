"""From what a network gives for an image (a map or tokens) to one row of features."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rdm.api import InputError

MAP, TOKENS, ROW = 4, 3, 2  # dimensions of "n d h w", "n t d" and "n d"


def poolings(dimensions: int, prefix: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Poolings by name for features of so many dimensions, `prefix` tokens of which stand before the patches'."""
    if dimensions == MAP:
        return {"spatial": lambda f: f.mean((2, 3)), "flatten": lambda f: f.flatten(1)}
    if dimensions == TOKENS:
        found = {"mean": lambda f: f[:, prefix:].mean(1), "flatten": lambda f: f.flatten(1)}
        first = {"cls": lambda f: f[:, 0]} if prefix else {}
        three = {"summary": lambda f: f[:, :3].flatten(1)} if prefix >= 3 else {}
        return first | three | found
    return {"flatten": lambda f: f.flatten(1)}


def pool(features: Tensor, how: str, prefix: int, *, owner: str) -> Tensor:
    """One row an image.

    Raises:
        InputError: a pooling that these features do not have, with those that they have.
    """
    known = poolings(features.ndim, prefix)
    if how not in known:
        raise unknown_pooling(how, known, owner)
    return known[how](features)


def unknown_pooling(how: str, known: object, owner: str) -> InputError:
    """The error of a pooling that a model does not have."""
    names = ", ".join(map(repr, known))  # type: ignore[call-overload]
    return InputError(f"{owner} has no pooling {how!r}; it has {names}")


class Tapped(nn.Module):
    """A network read at a named layer inside it; the layers after it run too."""

    def __init__(self, network: nn.Module, layer: str, *, owner: str):
        super().__init__()
        self.network = network
        names = [name for name, _ in network.named_modules() if name]
        if layer not in names:
            outer = [name for name in names if name.count(".") <= 1]
            raise InputError(f"{owner} has no layer {layer!r}; some that it has: {', '.join(outer[:40])}")
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """The layer's output."""
        kept: list[Any] = []
        handle = self.network.get_submodule(self.layer).register_forward_hook(
            lambda _m, _i, output: kept.append(output)
        )
        try:
            self.network(images)
        finally:
            handle.remove()
        return kept[-1]

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"layer={self.layer!r}"
