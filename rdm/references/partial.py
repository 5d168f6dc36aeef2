"""What a pass over a source has gathered so far, and the files that keep it between calls."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Batch
from rdm.errors import CorruptFileError
from rdm.files.schema import Check, ascending, equal_to, expect, listed, number, record, sequence, sha256, tensor, text
from rdm.files.store import read_tensors, write_tensors
from rdm.references.accumulate import MomentSums, Reservoir

BASE = "base.safetensors"  # sets shifts and units, and holds what earlier calls left


class State:
    """Everything a pass has gathered, as tensors."""

    def __init__(self, moments: Mapping[str, MomentSums], *, sample: int, per_class: bool, batches: int):
        self.moments = {name: MomentSums(like.shift, like.unit) for name, like in moments.items()}
        self.classes: dict[str, dict[int, MomentSums]] = {name: {} for name in moments}
        self.samples = {"reference": Reservoir(sample), "fresh": Reservoir(sample)}
        self.done = torch.zeros(batches, dtype=torch.bool)
        self.per_class, self.fresh, self.broken = per_class, 0, list[str]()
        self.depths: set[str] = set()
        self.shards: dict[int, str] = {}  # hash of each that is written

    def add(self, batch: Batch, features: Mapping[str, Tensor]) -> None:
        """Take in one batch."""
        here = ~batch.fresh
        for name, rows in features.items():
            self.moments[name].add(rows[here.to(rows.device)])
            if self.per_class:
                for label in batch.labels[here].unique().tolist():
                    chosen = (here & (batch.labels == label)).to(rows.device)
                    self._of_class(name, label).add(rows[chosen])
        for side, mask in (("reference", here), ("fresh", batch.fresh)):
            rows = {name: value[mask.to(value.device)].float() for name, value in features.items()}
            self.samples[side].add(batch.keys[mask], {"labels": batch.labels[mask], **rows})
        self.fresh += int(batch.fresh.sum())
        self.done[batch.number] = True
        self.broken += batch.broken
        self.depths |= batch.depths

    def save(self, path: Path, plan: str, includes: Sequence[str] = ()) -> None:
        """Write everything, whole or not at all; `includes` names the files that it takes the place of."""
        tensors: dict[str, Tensor] = {"done": self.done}
        for name, sums in self.moments.items():
            tensors |= {f"moments/{name}/{key}": value for key, value in sums.state().items()}
            for label, part in self.classes[name].items():
                state = part.state()
                tensors |= {f"class/{name}/{label}/{key}": state[key] for key in ("high", "low", "count")}
        for side, reservoir in self.samples.items():
            tensors |= {f"sample/{side}/{key}": value for key, value in reservoir.state().items()}
        rest = {"fresh": self.fresh, "broken": self.broken, "depths": sorted(self.depths)}
        rest["shards"] = sorted(self.shards.items())
        write_tensors(path, tensors, {**rest, "plan": plan, "includes": list(includes)})

    def merge(self, path: Path) -> None:
        """Add what a file holds, which is sound (`check`)."""
        tensors, rest = read_tensors(path)
        for name in self.moments:
            self.moments[name].merge(_below(tensors, f"moments/{name}/"))
            for label in _labels(name, tensors):
                self._of_class(name, label).merge(_below(tensors, f"class/{name}/{label}/"))
        for side, reservoir in self.samples.items():
            reservoir.merge(_below(tensors, f"sample/{side}/"))
        self.done |= tensors["done"]
        self.fresh += rest["fresh"]
        self.broken += rest["broken"]
        self.depths |= set(rest["depths"])
        self.shards |= dict(rest["shards"])

    @property
    def widths(self) -> dict[str, int]:
        """Number of features by member."""
        return {name: len(sums.shift) for name, sums in self.moments.items()}

    @property
    def items(self) -> int:
        """How many items it has seen."""
        return next(iter(self.moments.values())).count + self.fresh + len(self.broken)

    def check(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], path: Path, sizes: Sequence[int]) -> None:
        """Refuse a file that does not hold what a state of this survey does; `sizes` are those of its batches.

        Raises:
            CorruptFileError: which entry, what it must be and what it is.
        """
        names = listed(text())
        shard = sequence([number(int, low=0, high=len(sizes) - 1), sha256])
        said = {
            "shards": listed(shard),
            "fresh": number(int, low=0),
            "plan": text(),
            "broken": names,
            "depths": names,
            "includes": names,
        }
        expect(rest, record(said), path)
        known = {"done": tensor("bool", str(len(sizes)))}
        for k, (name, like) in enumerate(self.moments.items()):
            sums = {f"moments/{name}/": _sums(len(like.shift))}
            sums |= {f"class/{name}/{label}/": _sums(len(like.shift)) for label in _labels(name, tensors)}
            known |= {f"{place}{key}": check for place, part in sums.items() for key, check in part.items()}
            known[f"moments/{name}/shift"] = tensor("float64", f"d{k}", law=equal_to(like.shift))
            known[f"moments/{name}/unit"] = tensor("float64", f"d{k}", law=equal_to(like.unit))
        rows = {"keys": tensor("int64", "k", low=0, law=ascending), "labels": tensor("int64", "k", low=-1)}
        rows |= {name: tensor("float32", f"k {len(like.shift)}") for name, like in self.moments.items()}
        held = {side: _below(tensors, f"sample/{side}/") for side in self.samples}
        others = {key: value for key, value in tensors.items() if not key.startswith("sample/")}
        expect(others, record(known), path)
        counts = [int(tensors[f"moments/{name}/count"]) for name in self.moments]
        count = counts[0]
        seen = {"reference": count, "fresh": rest["fresh"]}
        for side, sample in held.items():
            size = min(seen[side], self.samples[side].size)
            expect(sample, record(rows if size else {}), f"{path}, sample of {side}", k=size)
        batches = sum(size for size, done in zip(sizes, tensors["done"].tolist(), strict=True) if done)
        if set(counts) != {count} or count + rest["fresh"] + len(rest["broken"]) != batches:
            raise CorruptFileError(f"{path}: its counts are not those of the batches that it holds")

    def _of_class(self, name: str, label: int) -> MomentSums:
        like = self.moments[name]
        return self.classes[name].setdefault(label, MomentSums(like.shift, like.unit))


def _sums(d: int) -> dict[str, Check]:
    """Exact sums of d numbers and of their products, as two limbs, and how many rows they are of."""
    high, low = (tensor("int64", f"{d + 1} {d}", low=-(2.0**k), high=2.0**k) for k in (61, 41))
    return {"high": high, "low": low, "count": tensor("int64", "", low=0)}


def _labels(name: str, tensors: Iterable[str]) -> list[int]:
    """Classes of which a state holds sums under a member."""
    found = (re.fullmatch(rf"class/{re.escape(name)}/(-?\d{{1,19}})/(?:high|low|count)", key) for key in tensors)
    return sorted({int(match[1]) for match in found if match})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def moments_of(tensors: Mapping[str, Tensor], names: Sequence[str], path: Path) -> dict[str, MomentSums]:
    """Empty sums with the shifts and units that a state file holds for these members.

    Raises:
        CorruptFileError: it holds none, or no positive units.
    """
    known: dict[str, Check] = {}
    for k, name in enumerate(names):
        known[f"moments/{name}/shift"] = tensor("float64", f"d{k}")
        known[f"moments/{name}/unit"] = tensor("float64", f"d{k}", low=1e-300)
    expect({key: value for key, value in tensors.items() if key in known}, record(known), path)
    return {n: MomentSums(tensors[f"moments/{n}/shift"], tensors[f"moments/{n}/unit"]) for n in names}


def sound_states(
    folder: Path,
    plan: str,
    names: Sequence[str],
    blank: Callable[[Mapping[str, MomentSums]], State],
    sizes: Sequence[int],
) -> list[Path]:
    """State files of a plan, the base first, without those that it includes; none where the base is not sound.

    A damaged one is left out with a warning, so that its batches are measured again.
    """
    base, found, included = folder / BASE, list[Path](), set[str]()
    like, seen = None, torch.zeros(len(sizes), dtype=torch.bool)
    for path in [base, *sorted(set(folder.glob("*.safetensors")) - {base})] if base.is_file() else []:
        try:
            tensors, rest = read_tensors(path)
            if rest.get("plan") == plan and path.name not in included:
                like = like or blank(moments_of(tensors, names, path))
                like.check(tensors, rest, path, sizes)
                if bool((seen & tensors["done"]).any()):
                    raise CorruptFileError(f"{path} holds batches that another one holds too")
                seen, included = seen | tensors["done"], included | set(rest["includes"])
                found.append(path)
        except CorruptFileError as problem:
            warnings.warn(f"{problem}; what it held is measured again", stacklevel=2)
        if base not in found:
            return []
    return found
