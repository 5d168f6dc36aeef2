"""The reference file: what `rdm reference` measures once and `rdm evaluate` judges against.

One safetensors file. For every member of a battery: mean and covariance of the whole reference split in float64, a
uniform random sample of its rows and of the rows of a disjoint fresh split, the median distance, landmarks and
per-class moments on request; on request too, every row of the reference split in shards beside the file (`shards`).
Metadata: data set, counts, form of the items, and per member settings, fingerprint, dtype and floors (distances of
the fresh split to the reference).
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.escape import brief
from rdm.files.store import digest, existing, read_tensors, write_bytes, write_tensors
from rdm.matching.distances import median_distance
from rdm.matching.metric import Distance
from rdm.matching.real import Gaussian, Real
from rdm.references.accumulate import Reservoir, merged
from rdm.references.landmarks import landmarks as k_means
from rdm.references.schema import KIND, check, classes_of, read_moments, written_member
from rdm.references.shards import Shard, Shards, copied, opened, tidied
from rdm.registry import metrics

ZIP = b"PK\x03\x04"  # how an .npz begins
FLOOR_ROWS = 4096
IDENTITY = "settings", "fingerprint", "dtype"
FEATURES = "features"  # the member of moments or features whose encoder nobody says


@dataclass(frozen=True)
class Member:
    """The real side under one representation."""

    name: str
    gaussian: Gaussian
    rows: Tensor | None = None  # uniform sample of the reference split, in the order of the items' keys
    fresh: Tensor | None = None  # of the fresh split
    every: Shards | None = None  # rows of the reference split, where all are kept
    bandwidth: float | None = None
    weights: Tensor | None = None  # of `rows`, equal by default
    landmarks: Tensor | None = None
    classes: Mapping[int, Gaussian] = field(default_factory=dict)
    module: Mapping[str, Tensor] = field(default_factory=dict)  # weights of an encoder that was fitted on the data
    description: Mapping[str, Any] = field(default_factory=dict)  # settings, fingerprint, dtype, floors
    __repr__ = brief

    def real(self, device: torch.device | str = "cpu", **origin: Any) -> Real:
        """The real side as objectives take it: every row where all are kept, else the sample."""
        real = self.sampled(device, **origin)
        return real if self.every is None else replace(real, rows=self.every, whole=True)

    def sampled(self, device: torch.device | str = "cpu", **origin: Any) -> Real:
        """The real side as metrics take it: the sample, which may be the whole."""
        whole = self.rows is not None and len(self.rows) == self.gaussian.n
        sides = {"fresh": self.fresh, "bandwidth": self.bandwidth, "weights": self.weights}
        return Real(self.rows, self.gaussian, **sides, whole=whole, origin=origin).to(device)

    def floors(self) -> dict[str, dict[str, float]]:
        """Distances of the fresh split to the reference, at most 4,096 rows a side."""
        if self.rows is None or self.fresh is None or len(self.fresh) < 4:
            return {}
        real, found = self.sampled().thinned(FLOOR_ROWS, 0), {}
        fresh = self.fresh[:FLOOR_ROWS]
        for name, entry in metrics.items():
            if isinstance(entry.build, type) and issubclass(entry.build, Distance):
                found[name] = {"value": entry.build().estimate(fresh, real).value, "n": len(fresh)}
        return found


@dataclass(frozen=True)
class Reference:
    """Every member of a battery, measured on the same items."""

    members: Mapping[str, Member]
    description: Mapping[str, Any]  # data set, counts, form, battery, seed; of moments or features alone the first
    path: Path | None = None  # that it was read from
    keys: Tensor | None = None  # of the sampled items
    labels: Tensor | None = None
    fresh_keys: Tensor | None = None
    fresh_labels: Tensor | None = None
    __repr__ = brief

    @classmethod
    def from_features(cls, rows: Tensor, weights: Tensor | None = None) -> "Reference":
        """Features "n d" already computed: all of the reference, under one encoder."""
        real = Real.of(rows, weights)
        fit = Gaussian.of(real.features, real.weights)
        return cls(
            {FEATURES: Member(FEATURES, fit, real.features, weights=real.weights)},
            {"data": FEATURES, "n": fit.n, "n_fresh": 0},
        )

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.path or "the reference")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that it holds."""
        return digest(*self._content())

    def real(self, member: str | None = None, device: torch.device | str = "cpu") -> Real:
        """The real side under a member, the only one by default.

        Raises:
            InputError: no such member, or none named where there are several.
        """
        if member is None and len(self.members) > 1 or member is not None and member not in self.members:
            raise InputError(f"{self.name}: expected a member, one of {', '.join(self.members)}; got {member!r}")
        name = member or next(iter(self.members))
        return self.members[name].real(device, representation=name, **({"path": self.name} if self.path else {}))

    def save(self, path: Path | str) -> None:
        """Write the file whole or not at all."""
        if "sample" not in self.description:
            raise InputError(f"{self.name} has no items; write its moments by export(), or measure a file of features")
        copied(self.shards, Path(path))
        write_tensors(Path(path), *self._content())
        tidied(Path(path), self.shards)

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and description, as a file holds them."""
        tensors: dict[str, Tensor] = {}
        for side, value in self._sampled().items():
            if value is not None:
                tensors[side] = value
        for name, member in self.members.items():
            tensors |= {f"{name}/{key}": value for key, value in _tensors(member).items()}
        members = {
            name: {**m.description, "n": m.gaussian.n, "bandwidth": m.bandwidth} for name, m in self.members.items()
        }
        kept = {} if self.dtype is None else {"rows": {"dtype": self.dtype, "shards": [s.sha256 for s in self.shards]}}
        return tensors, {"kind": KIND, **self.description, **kept, "members": members}

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Files of all rows; none where a sample is kept."""
        return next((m.every.shards for m in self.members.values() if m.every is not None), ())

    @property
    def dtype(self) -> str | None:
        """What all rows were rounded to, where they are kept."""
        return self.shards[0].dtype if self.shards else None

    @classmethod
    def load(cls, path: Path | str) -> "Reference":
        """Read a reference, or moments as others write them (.npz of mu and sigma, or of NAME.mu and NAME.cov).

        Raises:
            CorruptFileError: truncated, altered or no reference.
        """
        with open(existing(Path(path)), "rb") as file:
            if file.read(len(ZIP)) == ZIP:
                fits = {name or FEATURES: fit for name, fit in read_moments(Path(path)).items()}
                members = {name: Member(name, fit) for name, fit in fits.items()}
                return cls(members, {"data": Path(path).name, "n": 0, "n_fresh": 0}, Path(path))
        tensors, description = read_tensors(Path(path))
        if description.get("kind") != KIND:
            raise CorruptFileError(f"{path} is no reference of rdm ({description.get('kind')!r}); expected {KIND!r}")
        check(tensors, description, Path(path))
        described = description.pop("members")
        members = {name: _member(name, tensors, text) for name, text in described.items()}
        if (kept := description.pop("rows", None)) is not None:
            widths = {name: len(m.gaussian.mean) for name, m in members.items()}
            every = opened(Path(path), kept, description["n"], widths)
            members = {name: replace(member, every=every[name]) for name, member in members.items()}
        sides = {side: tensors.get(side) for side in ("keys", "labels", "fresh_keys", "fresh_labels")}
        return cls(members, {k: v for k, v in description.items() if k != "kind"}, Path(path), **sides)

    def expect(self, name: str, *, path: Path | str, **said: Any) -> None:
        """Refuse an encoder that is not the one this file was measured with, printing both sides.

        `said` of it are settings, dtype, fingerprint.
        """
        held = self.members[name].description
        for key, value in said.items():
            if key in held and held[key] != value:
                raise MismatchError(
                    f"{path} was measured with {name!r} of {key} {held[key]!r}; now it has {value!r}; "
                    "measure the reference again or restore the encoder"
                )

    def merge(self, other: "Reference") -> "Reference":
        """The reference of both data sets' items, which must be disjoint; moments exact to float64 rounding.

        Raises:
            MismatchError: other members, encoders, form, split or seed.
            InputError: both hold the same items.
        """
        for key in ("battery", "form", "split", "seed", "sample"):
            mine, theirs = self.description.get(key), other.description.get(key)
            if mine != theirs:
                raise MismatchError(f"references differ in {key}: {mine!r} and {theirs!r}; measure them alike")
        if self.dtype != other.dtype:
            mine, theirs = (f"all rows in {r.dtype}" if r.dtype else "a sample" for r in (self, other))
            raise MismatchError(f"references keep {mine} and {theirs}; measure them alike")
        if list(self.members) != list(other.members):
            raise MismatchError(f"references have members {list(self.members)} and {list(other.members)}")
        for name, member in self.members.items():
            for key in IDENTITY:
                mine, theirs = member.description.get(key), other.members[name].description.get(key)
                if mine != theirs:
                    raise MismatchError(
                        f"references have {name!r} of {key} {mine!r} and {theirs!r}; measure them alike"
                    )
        sides = [_union(self, other, prefix) for prefix in ("", "fresh_")]
        members = {name: self._joined(other, name, *sides) for name in self.members}
        counts = {key: self.description[key] + other.description[key] for key in ("n", "n_fresh")}
        description = {
            **self.description,
            **counts,
            "data": f"{self.description['data']} + {other.description['data']}",
        }
        keys = [(side.get("keys"), side.get("labels")) for side in sides]
        return finished(Reference(members, description, None, *keys[0], *keys[1]), landmarks=self._landmarks())

    def write(self, path: Path, member: str | None = None) -> None:
        """Write what the path's suffix says: .safetensors, or .npz of one member's moments (`written_member`)."""
        name = written_member(path, self.members, member, self.description.get("held_out", ()))
        if name is None:
            self.save(path)
        else:
            self.export(path, name)

    def export(self, path: Path, member: str) -> None:
        """Write one member's moments as FD-loss' .npz: mu and sigma, float64."""
        buffer, fit = io.BytesIO(), self.members[member].gaussian
        np.savez(buffer, mu=fit.mean.cpu().numpy(), sigma=fit.covariance.cpu().numpy())
        write_bytes(Path(path), buffer.getvalue())

    def _sampled(self) -> dict[str, Tensor | None]:
        return {
            "keys": self.keys,
            "labels": self.labels,
            "fresh_keys": self.fresh_keys,
            "fresh_labels": self.fresh_labels,
        }

    def _landmarks(self) -> int:
        return max(0 if m.landmarks is None else len(m.landmarks) for m in self.members.values())

    def _joined(self, other: "Reference", name: str, rows: dict, fresh: dict) -> Member:
        mine, theirs = self.members[name], other.members[name]
        classes = dict(mine.classes)
        for label, fit in theirs.classes.items():
            classes[label] = merged(classes[label], fit) if label in classes else fit
        together = merged(mine.gaussian, theirs.gaussian)
        every = None if mine.every is None else Shards(name, [*self.shards, *other.shards])
        return replace(
            mine, gaussian=together, rows=rows.get(name), fresh=fresh.get(name), every=every, classes=classes
        )


def finished(file: Reference, *, landmarks: int) -> Reference:
    """The file with what follows from its samples: bandwidths, landmarks and floors."""
    members = {}
    for name, member in file.members.items():
        if member.rows is not None and len(member.rows) > 1:
            chosen = _centres(member.rows, landmarks) if landmarks else None
            member = replace(member, bandwidth=_median(member.rows), landmarks=chosen)
        members[name] = replace(member, description={**member.description, "floors": member.floors()})
    return replace(file, members=members)


def _median(rows: Tensor) -> float | None:
    """Median distance between the rows; None where more than half of the pairs coincide."""
    try:
        return median_distance(Real.of(rows))
    except InputError:
        return None


def _centres(rows: Tensor, count: int) -> Tensor:
    """K-means centres of the rows, float64."""
    ones = torch.ones(len(rows), dtype=torch.float64)
    return k_means(rows.double(), ones, count, method="k-means", seed=0)


def _union(a: Reference, b: Reference, prefix: str) -> dict[str, Tensor]:
    """Sample of both files' items, by their keys."""
    reservoir = Reservoir(int(a.description["sample"]))
    seen: set[int] = set()
    for file in (a, b):
        keys, labels = (getattr(file, f"{prefix}{side}") for side in ("keys", "labels"))
        if keys is None:
            continue
        if seen & set(keys.tolist()):
            shared = len(seen & set(keys.tolist()))
            raise InputError(f"both references hold {shared} equal items or more; merge references of disjoint data")
        seen = set(keys.tolist())
        rows = {n: m.fresh if prefix else m.rows for n, m in file.members.items()}
        reservoir.add(keys, {"labels": labels, **{n: r for n, r in rows.items() if r is not None}})
    return reservoir.state()


def _tensors(member: Member) -> dict[str, Tensor]:
    fit = member.gaussian
    found = {"mean": fit.mean, "covariance": fit.covariance}
    for key in ("rows", "fresh", "weights", "landmarks"):
        if getattr(member, key) is not None:
            found[key] = getattr(member, key)
    for label, fit in member.classes.items():
        found |= {f"class/{label}/mean": fit.mean, f"class/{label}/covariance": fit.covariance}
        found[f"class/{label}/n"] = torch.tensor(fit.n)
    return found | {f"module/{key}": value for key, value in member.module.items()}


def _member(name: str, tensors: Mapping[str, Tensor], described: dict[str, Any]) -> Member:
    mine = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    classes = {
        k: Gaussian(mine[f"class/{k}/mean"], mine[f"class/{k}/covariance"], int(mine[f"class/{k}/n"]))
        for k in classes_of(name, tensors)
    }
    module = {key.removeprefix("module/"): value for key, value in mine.items() if key.startswith("module/")}
    described = dict(described)
    n, bandwidth = described.pop("n"), described.pop("bandwidth")
    gaussian = Gaussian(mine["mean"], mine["covariance"], n)
    rows, fresh, centres = (mine.get(key) for key in ("rows", "fresh", "landmarks"))
    sides: dict[str, Any] = {"rows": rows, "fresh": fresh, "landmarks": centres}
    return Member(name, gaussian, **sides, bandwidth=bandwidth, classes=classes, module=module, description=described)
