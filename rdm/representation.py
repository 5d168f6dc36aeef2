"""Representations (frozen encoders) and batteries of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rdm.errors import InputError
from rdm.store import digest

Fit = Callable[[Tensor], nn.Module]


@dataclass(frozen=True)
class Representation:
    """A frozen encoder: items "n ..." (images "n c h w" in [0, 1]) -> features "n d".

    It is no `nn.Module`, so that no `train()` or `parameters()` of a trainer reaches the encoder: it stays in
    evaluation mode and takes no gradient step, while the gradient of its input flows. The module owns its
    preprocessing and must be differentiable in its input.

    Args:
        name: how logs, tables and errors call it.
        module: the encoder; None where `fit` makes it from reference items.
        settings: hyperparameters that, with the weights, identify the features (JSON values).
        fit: makes the module from reference items, for encoders that are estimated (PCA).
        conditional: the module takes (items, condition), for features joined with a condition's embedding.
    """

    name: str
    module: nn.Module | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Fit | None = None
    conditional: bool = False

    def __post_init__(self) -> None:  # noqa: D105
        if self.module is not None:
            self.module.eval().requires_grad_(False)

    def fitted(self, items: Tensor) -> "Representation":
        """This representation with its module estimated on `items`, where it needs that."""
        if self.module is not None or self.fit is None:
            return self
        return replace(self, module=self.fit(items))

    def to(self, device: torch.device | str) -> "Representation":
        """Move the encoder to a device."""
        if self.module is not None:
            self.module.to(device)
        return self

    def __call__(self, items: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encode items to features "n d"."""
        if self.module is None:
            raise InputError(
                f"representation {self.name!r} is estimated on data; call .fitted(reference items) before encoding"
            )
        features = self.module(items, condition) if self.conditional else self.module(items)
        if features.ndim != 2 or len(features) != len(items):
            raise InputError(
                f"representation {self.name!r} must give one row an item, shape ({len(items)}, d); "
                f"got {tuple(features.shape)}"
            )
        return features

    @property
    def fingerprint(self) -> str:
        """SHA-256 over name, settings, architecture and weights: equal fingerprints give equal features."""
        if self.module is None:
            raise InputError(f"representation {self.name!r} is estimated on data and has no fingerprint before")
        description = {"name": self.name, "settings": dict(self.settings), "module": repr(self.module)}
        return digest(self.module.state_dict(), description)


@dataclass(frozen=True)
class Battery:
    """Representations to train on, each with the weight of its term, and others held out for evaluation only."""

    members: Sequence[Representation]
    held_out: Sequence[Representation] = ()
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:  # noqa: D105
        names = [r.name for r in (*self.members, *self.held_out)]
        if not self.members:
            raise InputError("a battery needs at least one representation; got none")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"names in a battery must differ; {repeated} occur more than once")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise InputError(f"expected {len(self.members)} weights, one a member; got {len(self.weights)}")
        if self.weights is not None and not all(0 <= w < float("inf") for w in self.weights):
            raise InputError(f"weights of a battery must be finite and not negative; got {list(self.weights)}")

    def fitted(self, items: Tensor) -> "Battery":
        """The battery with every member estimated on `items` that needs it."""
        return replace(
            self,
            members=tuple(r.fitted(items) for r in self.members),
            held_out=tuple(r.fitted(items) for r in self.held_out),
        )

    def to(self, device: torch.device | str) -> "Battery":
        """Move every encoder to a device."""
        for representation in (*self.members, *self.held_out):
            representation.to(device)
        return self

    @property
    def member_weights(self) -> tuple[float, ...]:
        """One weight a member, ones by default."""
        return tuple(self.weights) if self.weights is not None else (1.0,) * len(self.members)
