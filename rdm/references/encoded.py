"""Items in memory, encoded to the real side under one representation, and kept in the cache."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.condition import Condition, leaves, split
from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.files.schema import expect, record, tensor
from rdm.files.store import digest, read_tensors, write_tensors
from rdm.matching.real import Real
from rdm.matching.representation import Representation


def encoded(
    items: Tensor,
    representation: Representation,
    *,
    condition: Condition | None = None,
    chunk: int = 512,
    cache: Path | None = None,
) -> Real:
    """Encode `items`, chunk by chunk, or read the same features from `cache`.

    The cache file is named and checked by the hash of items and representation (weights, settings, dtype). One that
    cannot be read, used or written is no cache: a warning says so.
    """
    representation.check(items, condition)
    origin = {
        "representation": representation.name,
        "settings": dict(representation.settings),
        "fingerprint": representation.fingerprint,
        "items": digest({"items": items} | {f"condition{name}": part for name, part in leaves(condition)}),
        "dtype": str(items.dtype),
        "n": len(items),
    }
    path = None if cache is None else Path(cache) / f"reference-{digest({}, origin)[:16]}.safetensors"
    if path is not None and (held := _cached(path, origin)) is not None:
        return held.to(items.device)
    parts = items.split(chunk)
    conditions = split(condition, [len(part) for part in parts])
    with torch.no_grad():
        features = torch.cat([representation(x, c) for x, c in zip(parts, conditions, strict=True)])
    real = Real.of(features, **origin)
    if path is not None:
        try:
            write_tensors(path, {"features": real.features}, {**origin, "form": _form(real.features)})
        except OSError as error:  # full, read-only, or no folder
            warnings.warn(f"the cache {path.parent} cannot be written ({error}); going on without", stacklevel=2)
    return real


def _cached(path: Path, expected: dict[str, Any]) -> Real | None:
    """What a cache file holds, or None where there is none, or none that can be used."""
    try:
        if not path.exists():
            return None
        tensors, origin = read_tensors(path)
        form = origin.pop("form", None)
        expect(tensors, record({"features": tensor("float32 float64", f"{expected['n']} d")}), path)
        if form != _form(tensors["features"]):
            raise CorruptFileError(f"{path}: features must be {form}; got {_form(tensors['features'])}")
        for key, value in expected.items():
            if origin.get(key) != value:
                raise MismatchError(f"{path} was made for {key} {origin.get(key)!r}; expected {value!r}")
        return Real.of(tensors["features"], **origin)
    except (InputError, OSError) as problem:
        warnings.warn(f"{problem}; the cache is not used, the reference is measured", stacklevel=3)
        return None


def _form(features: Tensor) -> str:
    return f"{features.dtype} {tuple(features.shape)}"
