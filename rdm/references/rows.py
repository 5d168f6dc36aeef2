"""The reference: the data side of a distance, as features of one representation."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.files.schema import expect as must_hold
from rdm.files.schema import record, tensor
from rdm.files.store import digest, read_tensors, write_tensors
from rdm.matching.representation import Representation
from rdm.matching.statistic import Statistic, Summary, checked, refuse_gradient

CONTENT = record({"features": tensor("float32 float64", "m d"), "weights": tensor("float64", "m", low=0)})


@dataclass(frozen=True)
class Reference:
    """Features of the data under one representation, with weights; `origin` says what they were made from.

    Build it with `from_features` (any rows) or `measure` (items through a representation, cached on disk).
    """

    features: Float[Tensor, "m d"]
    weights: Float[Tensor, " m"]
    origin: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_features(cls, features: Tensor, weights: Tensor | None = None, **origin: Any) -> "Reference":
        """Check rows and weights (see `rdm.matching.statistic.checked`) and hold them."""
        side = f"reference {origin['representation']!r}" if "representation" in origin else "reference"
        refuse_gradient(weights, f"weights of {side}", "detach them")
        rows, mass = checked(features, weights, side=side)
        return cls(rows.detach(), mass, origin)

    @classmethod
    def measure(
        cls,
        items: Tensor,
        representation: Representation,
        *,
        condition: Tensor | None = None,
        chunk: int = 512,
        cache: Path | None = None,
    ) -> "Reference":
        """Encode `items` (chunk by chunk) or read the same features from `cache`.

        The cache file is named and checked by the hash of items and representation (weights, settings, dtype). One
        that cannot be read, used or written is no cache: a warning says so.
        """
        representation.check(items, condition)
        origin = {
            "representation": representation.name,
            "settings": dict(representation.settings),
            "fingerprint": representation.fingerprint,
            "items": digest({"items": items} | ({} if condition is None else {"condition": condition})),
            "dtype": str(items.dtype),
            "n": len(items),
        }
        path = None if cache is None else Path(cache) / f"reference-{digest({}, origin)[:16]}.safetensors"
        if path is not None and (held := _cached(path, origin)) is not None:
            return held.to(items.device)
        parts = items.split(chunk)
        pieces = parts, (None,) * len(parts) if condition is None else condition.split(chunk)
        with torch.no_grad():
            features = torch.cat([representation(x, c) for x, c in zip(*pieces, strict=True)])
        reference = cls.from_features(features, **origin)
        if path is not None:
            try:
                reference.save(path)
            except OSError as error:  # full, read-only, or no folder
                warnings.warn(f"the cache {path.parent} cannot be written ({error}); going on without", stacklevel=2)
        return reference

    def to(self, device: torch.device | str) -> "Reference":
        """The same reference on a device."""
        return Reference(self.features.to(device), self.weights.to(device), self.origin)

    @property
    def dimension(self) -> int:
        """Number of features, d."""
        return self.features.shape[1]

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Weighted mean in float64."""
        return (self.weights @ self.features.double()) / self.weights.sum()

    def chunks(self, size: int = 4096) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and weights, `size` at a time."""
        return zip(self.features.split(size), self.weights.split(size), strict=True)

    def subset(self, size: int, *, seed: int = 0) -> "Reference":
        """At most `size` rows, drawn uniformly without replacement (never the first ones)."""
        if size >= len(self.features):
            return self
        rows = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(seed))[:size]
        rows = rows.to(self.features.device)
        return Reference(self.features[rows], self.weights[rows], self.origin)

    def summarize(self, statistic: Statistic) -> Summary:
        """The statistic of the whole reference, measured in chunks."""
        parts: list[Summary] = []
        for features, weights in self.chunks():
            parts = statistic.kind.compact([*parts, statistic.measure(features, weights)])
        return statistic.kind.merge(parts)

    def save(self, path: Path) -> None:
        """Write to one safetensors file, whole or not at all."""
        content = {"features": self.features, "weights": self.weights}
        write_tensors(Path(path), content, {**self.origin, "form": _form(self.features)})

    @classmethod
    def load(cls, path: Path, *, expect: dict[str, Any] | None = None) -> "Reference":
        """Read a reference; with `expect`, refuse one whose origin differs, printing both sides.

        Raises:
            CorruptFileError: truncated or altered.
            MismatchError: made from other data or by another representation than expected.
        """
        tensors, origin = read_tensors(Path(path))
        must_hold(tensors, CONTENT, path, "measure the reference again")
        if (form := origin.pop("form", None)) not in (None, _form(tensors["features"])):  # None: of an older release
            raise CorruptFileError(
                f"{path}: features must be {form}; got {_form(tensors['features'])}; measure it again"
            )
        for key, value in (expect or {}).items():
            if origin.get(key) != value:
                raise MismatchError(
                    f"{path} was made for {key} {origin.get(key)!r}; expected {value!r}; measure the reference again"
                )
        side = f"reference {origin.get('representation', path)!r}"
        return cls(*checked(tensors["features"], tensors["weights"], side=side), origin)


def _form(features: Tensor) -> str:
    return f"{features.dtype} {tuple(features.shape)}"


def _cached(path: Path, origin: dict[str, Any]) -> Reference | None:
    """What a cache file holds, or None where there is none, or none that can be used."""
    try:
        if not path.exists():
            return None
        found = Reference.load(path, expect=origin)
        rows = {
            "features": tensor("float32 float64", f"{origin['n']} d"),
            "weights": tensor("float64", "m", low=1, high=1),
        }
        must_hold({"features": found.features, "weights": found.weights}, record(rows), path)
        return found
    except (InputError, OSError) as problem:
        warnings.warn(f"{problem}; the cache is not used, the reference is measured", stacklevel=3)
        return None
