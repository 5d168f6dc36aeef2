"""The reference file: what `rdm reference` measures once and `rdm evaluate` judges against.

One safetensors file. For every member of a battery: mean and covariance of the whole reference split in float64, a
uniform random sample of its rows and of the rows of a disjoint fresh split, the median distance, landmarks and
per-class moments on request; on request too, every row of the reference split in shards beside the file (`shards`).
Metadata: data set, counts, form of the items, and per member settings, fingerprint, dtype and floors (distances of
the fresh split to the reference).
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.files.schema import expect, record
from rdm.files.store import existing, read_tensors, write_bytes, write_tensors
from rdm.matching.distances import median_distance
from rdm.matching.metric import Distance
from rdm.matching.real import Gaussian, Real
from rdm.references.accumulate import Reservoir, merged
from rdm.references.landmarks import landmarks as k_means
from rdm.references.schema import KIND, MOMENTS, check, classes_of
from rdm.references.shards import Shard, Shards, copied, opened, tidied
from rdm.registry import metrics

ZIP = b"PK\x03\x04"  # how an .npz begins
FLOOR_ROWS = 4096
IDENTITY = "settings", "fingerprint", "dtype"


@dataclass(frozen=True)
class Member:
    """The real side under one representation."""

    name: str
    gaussian: Gaussian
    rows: Tensor | None = None  # uniform sample of the reference split, in the order of the items' keys
    fresh: Tensor | None = None  # of the fresh split
    every: Shards | None = None  # rows of the reference split, where all are kept
    bandwidth: float | None = None
    landmarks: Tensor | None = None
    classes: Mapping[int, Gaussian] = field(default_factory=dict)
    module: Mapping[str, Tensor] = field(default_factory=dict)  # weights of an encoder that was fitted on the data
    description: Mapping[str, Any] = field(default_factory=dict)  # settings, fingerprint, dtype, floors

    def real(self, device: torch.device | str = "cpu") -> Real:
        """The real side as objectives take it: every row where all are kept, else the sample."""
        real = self.sampled(device)
        return real if self.every is None else replace(real, rows=self.every, whole=True)

    def sampled(self, device: torch.device | str = "cpu") -> Real:
        """The real side as metrics take it: the sample, which may be the whole."""
        whole = self.rows is not None and len(self.rows) == self.gaussian.n
        return Real(self.rows, self.gaussian, self.fresh, self.bandwidth, whole=whole).to(device)

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
    description: Mapping[str, Any]  # data set, counts, form, battery, seed
    keys: Tensor | None = None  # of the sampled items
    labels: Tensor | None = None
    fresh_keys: Tensor | None = None
    fresh_labels: Tensor | None = None

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
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
        copied(self.shards, Path(path))
        write_tensors(Path(path), tensors, {"kind": KIND, **self.description, **kept, "members": members})
        tidied(Path(path), self.shards)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Files of all rows; none where a sample is kept."""
        return next((m.every.shards for m in self.members.values() if m.every is not None), ())

    @property
    def dtype(self) -> str | None:
        """What all rows were rounded to, where they are kept."""
        return self.shards[0].dtype if self.shards else None

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read a reference, or moments as FD-loss writes them (.npz of mu and sigma).

        Raises:
            CorruptFileError: truncated, altered or no reference.
        """
        with open(existing(Path(path)), "rb") as file:
            if file.read(len(ZIP)) == ZIP:
                return _from_npz(Path(path))
        tensors, description = read_tensors(Path(path))
        if description.get("kind") != KIND:
            raise CorruptFileError(f"{path} is no reference of rdm ({description.get('kind')!r}); expected {KIND!r}")
        check(tensors, description, path)
        described = description.pop("members")
        members = {name: _member(name, tensors, text) for name, text in described.items()}
        if (kept := description.pop("rows", None)) is not None:
            widths = {name: len(m.gaussian.mean) for name, m in members.items()}
            every = opened(Path(path), kept, description["n"], widths)
            members = {name: replace(member, every=every[name]) for name, member in members.items()}
        sides = {side: tensors.get(side) for side in ("keys", "labels", "fresh_keys", "fresh_labels")}
        return cls(members, {k: v for k, v in description.items() if k != "kind"}, **sides)

    def expect(self, name: str, *, settings: Any, fingerprint: str, dtype: str, path: Path) -> None:
        """Refuse an encoder that is not the one this file was measured with, printing both sides."""
        held = self.members[name].description
        for key, value in {"settings": settings, "dtype": dtype, "fingerprint": fingerprint}.items():
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
        return finished(Reference(members, description, *keys[0], *keys[1]), landmarks=self._landmarks())

    def write(self, path: Path, member: str | None = None) -> None:
        """Write what the path's suffix says: .safetensors, or .npz of one member's moments (`written_member`)."""
        name = written_member(path, self.members, member)
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


def written_member(path: Path, members: Iterable[str], member: str | None) -> str | None:
    """The member whose moments an .npz at `path` gets; None for a .safetensors file, which holds all.

    Raises:
        InputError: another suffix, a member that is not there, or none named where there are several.
    """
    members = list(members)
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"expected --out FILE.safetensors, or FILE.npz for mu and sigma; got {path.name!r}")
    if member is not None and member not in members:
        raise InputError(f"the reference has no member {member!r}; known: {', '.join(members)}")
    if path.suffix == ".safetensors":
        if member is not None:
            raise InputError(f"--member says whose moments an .npz gets; {path.name} holds all; leave it out")
        return None
    if member is None and len(members) > 1:
        raise InputError(f"an .npz holds one encoder's moments; give --member, one of {', '.join(members)}")
    return member or members[0]


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
    for key in ("rows", "fresh", "landmarks"):
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
    return Member(name, gaussian, rows, fresh, None, bandwidth, centres, classes, module, described)


def _from_npz(path: Path) -> Reference:
    """Moments: two arrays of floating-point numbers, mu "d" and sigma "d d"."""
    held = {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in ("mu", "sigma"):
                array = archive[name]
                if array.dtype not in (np.float64, np.float32):
                    raise CorruptFileError(f"{path}: {name} must be float64 or float32; got {array.dtype}")
                held[name] = torch.from_numpy(array.astype(np.float64))
    except CorruptFileError:
        raise
    except Exception as error:  # numpy and zipfile have their own, and advise to unpickle what nobody should
        kind = "cut off, altered or pickled" if not isinstance(error, KeyError) else "without one of them"
        raise CorruptFileError(f"{path} is no .npz of the arrays mu and sigma; it is {kind}") from error
    expect(held, record(MOMENTS), path, "compute the moments again")
    if len(held["mu"]) == 0:
        raise CorruptFileError(f"{path}: mu and sigma are empty; compute the moments again")
    name = "features"
    member = Member(name, Gaussian(held["mu"], held["sigma"], 0))
    return Reference({name: member}, {"data": path.name, "n": 0, "n_fresh": 0})
