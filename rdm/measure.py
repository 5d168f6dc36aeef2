"""One pass over a source through every member of a battery: what `rdm reference` does, resumable and exact.

The items are taken in batches of consecutive numbers, each encoded as one whatever the workers and ranks; sums are
exact and the sample is keyed by the items (`rdm.accumulate`), so that the file's bytes depend on nothing else. While
it runs, each rank keeps its state in a folder beside the file, replaced atomically every few seconds; the next call,
of any number of ranks, merges what is there and measures the batches that are missing.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.accumulate import MomentSums, Reservoir
from rdm.distributed import barrier, rank, world_size
from rdm.errors import InputError
from rdm.items import Batch, Items
from rdm.progress import progress
from rdm.reference_file import MemberReference, ReferenceFile, finished
from rdm.representation import Battery, Representation
from rdm.run import Interrupted, stop_requests
from rdm.source import hashed
from rdm.statistic import checked
from rdm.store import digest, read_tensors, remove_folder, write_tensors

PILOT, FIT = 128, 512  # items that set shifts and units; items that encoders are fitted on


@dataclass(frozen=True)
class Encoders:
    """What turns a batch into every member's features: a battery, or the columns of features already computed."""

    battery: Battery | None
    columns: Mapping[str, int] = field(default_factory=dict)  # widths, of features already computed
    device: torch.device = torch.device("cpu")

    @property
    def members(self) -> list[Representation]:
        """Representations to measure, held-out ones included."""
        return [] if self.battery is None else [*self.battery.members, *self.battery.held_out]

    def features(self, values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Checked features "n d" by member; members joined with a condition see the labels."""
        if self.battery is None:
            parts = values.split(list(self.columns.values()), 1)
            return {name: checked(part, side=repr(name))[0] for name, part in zip(self.columns, parts, strict=True)}
        values, found = values.to(self.device), {}
        with torch.no_grad():
            for member in self.members:
                member.check(values)
                condition = labels.to(self.device) if member.conditional and labels is not None else None
                found[member.name] = checked(member(values, condition), side=f"features of {member.name!r}")[0]
        return found

    def describe(self) -> dict[str, dict[str, Any]]:
        """Settings, fingerprint and dtype by member, as a reference file records them."""
        if self.battery is None:
            given = {"settings": {}, "fingerprint": "given", "dtype": "float32"}
            return {name: {**given, "dimension": width} for name, width in self.columns.items()}
        return {
            m.name: {"settings": dict(m.settings), "fingerprint": m.fingerprint, "dtype": m.precision}
            for m in self.members
        }


class State:
    """Everything a pass has gathered, as tensors."""

    def __init__(self, moments: Mapping[str, MomentSums], *, sample: int, per_class: bool, batches: int):
        self.moments = {name: MomentSums(like.shift, like.unit) for name, like in moments.items()}
        self.classes: dict[str, dict[int, MomentSums]] = {name: {} for name in moments}
        self.samples = {"reference": Reservoir(sample), "fresh": Reservoir(sample)}
        self.done = torch.zeros(batches, dtype=torch.bool)
        self.per_class, self.fresh, self.broken = per_class, 0, list[str]()
        self.depths: set[str] = set()

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
        write_tensors(path, tensors, {**rest, "plan": plan, "includes": list(includes)})

    def merge(self, path: Path) -> None:
        """Add what a file holds."""
        tensors, rest = read_tensors(path)
        for name in self.moments:
            self.moments[name].merge(_below(tensors, f"moments/{name}/"))
            for label in {key.split("/")[2] for key in tensors if key.startswith(f"class/{name}/")}:
                self._of_class(name, int(label)).merge(_below(tensors, f"class/{name}/{label}/"))
        for side, reservoir in self.samples.items():
            reservoir.merge(_below(tensors, f"sample/{side}/"))
        self.done |= tensors["done"]
        self.fresh += rest["fresh"]
        self.broken += rest["broken"]
        self.depths |= set(rest["depths"])

    def _of_class(self, name: str, label: int) -> MomentSums:
        like = self.moments[name]
        return self.classes[name].setdefault(label, MomentSums(like.shift, like.unit))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Survey:
    """A pass to make: items through encoders into a file."""

    items: Items
    encoders: Encoders
    out: Path
    description: Mapping[str, Any]  # of the data and battery, for the file
    sample: int = 16_384
    per_class: bool = False
    landmarks: int = 0
    skip_broken: bool = False
    workers: int = 0
    save_every: float = 20.0  # seconds
    member: str | None = None  # whose moments an .npz gets

    def run(self) -> ReferenceFile | None:
        """Measure what is missing, write the file (rank 0), return it there.

        Raises:
            InputError: an item is broken and `skip_broken` is off, or is unlike the first one.
            Interrupted: on Ctrl-C or SIGTERM, when what was measured is saved.
        """
        plan, folder = self._plan(), self.out.with_name(f".{self.out.name}.partial")
        state = self._begin(folder, plan)
        missing = torch.nonzero(~state.done)[:, 0].tolist()
        mine, path = self._blank(state.moments), folder / f"{time.time_ns()}-{rank()}.safetensors"
        self._pass(mine, missing[rank() :: world_size()], path, plan, missing)
        mine.save(path, plan)
        barrier()
        found = None
        if rank() == 0:
            whole = self._blank(state.moments)
            for part in _states(folder, plan):
                whole.merge(part)
            found = self._file(whole)
            found.write(self.out, self.member)
            remove_folder(folder)
        barrier()
        return found

    def _pass(self, state: State, numbers: Sequence[int], path: Path, plan: str, missing: Sequence[int]) -> None:
        saved, read = time.monotonic(), 0
        before = len(self.items) - len(missing)
        shown = progress(len(self.items), done=before, quiet=rank() > 0)
        with shown as report, stop_requests(together=False) as stopping:
            for k, batch in enumerate(self._batches(numbers, stopping)):
                read += len(batch.values) + len(batch.broken)
                self._refuse(batch, len(state.broken) + len(batch.broken), read)
                state.add(batch, self.encoders.features(batch.values, batch.labels) if len(batch.values) else {})
                report.update(min(before + (k + 1) * world_size(), len(self.items)), {})
                if stopping() or time.monotonic() - saved > self.save_every:
                    state.save(path, plan)
                    saved = time.monotonic()
                if stopping():
                    break
        if stopping():
            kept = before + int(state.done.sum())
            raise Interrupted(f"interrupted; {kept} of {len(self.items)} batches are kept, the same command goes on")

    def _batches(self, numbers: Sequence[int], stopping: Callable[[], bool]) -> Iterator[Batch]:
        try:
            yield from self.items.read(numbers, workers=self.workers)
        except RuntimeError:
            if not stopping():  # Ctrl-C ends the reading processes too
                raise

    def _refuse(self, batch: Batch, broken: int, read: int) -> None:
        if batch.error:
            raise InputError(batch.error)
        if batch.broken and not self.skip_broken:
            raise InputError(
                f"{batch.broken[0]}; {broken} broken of {read} items read; mend or remove it, or give --skip-broken"
            )

    def _begin(self, folder: Path, plan: str) -> State:
        """What earlier calls left, merged into one file that all ranks read: with it shifts and units are equal."""
        base = folder / "base.safetensors"
        if rank() == 0:
            earlier = _states(folder, plan)
            if not earlier:
                shutil.rmtree(folder, ignore_errors=True)
                self._blank(self._pilot()).save(base, plan)
            elif earlier != [base]:
                state = self._blank(_moments(base))
                for path in earlier:
                    state.merge(path)
                state.save(base, plan, [path.name for path in earlier if path != base])
        barrier()
        state = self._blank(_moments(base))
        state.merge(base)
        for path in folder.glob("*-*.safetensors") if rank() == 0 else ():
            path.unlink()  # merged, or of another plan
        barrier()
        return state

    def _pilot(self) -> dict[str, MomentSums]:
        items, labels = self.items.pick(max(16, min(PILOT, self.items.total // 32)))
        return {name: MomentSums.like(rows.cpu()) for name, rows in self.encoders.features(items, labels).items()}

    def _blank(self, moments: Mapping[str, MomentSums]) -> State:
        place = self.encoders.device
        moved = {name: MomentSums(like.shift.to(place), like.unit.to(place)) for name, like in moments.items()}
        return State(moved, sample=self.sample, per_class=self.per_class, batches=len(self.items))

    def _plan(self) -> str:
        """Hash of everything that the final bytes depend on."""
        names = hashed(*(f"{side}{source.name(i)}" for source, side in self.items.sources for i in range(len(source))))
        return digest(
            {},
            {
                "names": names,
                "size": self.items.size,
                "share": self.items.share,
                "description": dict(self.description),
                "members": self.encoders.describe(),
                "options": [self.sample, self.per_class, self.landmarks, self.skip_broken],
            },
        )

    def _file(self, state: State) -> ReferenceFile:
        samples = {side: reservoir.state() for side, reservoir in state.samples.items()}
        here, fresh = samples["reference"], samples["fresh"]
        modules = {m.name: m for m in self.encoders.members if m.fit is not None and m.module is not None}
        members = {}
        for name, described in self.encoders.describe().items():
            module = modules[name].module.state_dict() if name in modules else {}  # type: ignore[union-attr]
            classes = {k: s.gaussian() for k, s in sorted(state.classes[name].items()) if k >= 0 and s.count > 1}
            gaussian = state.moments[name].gaussian()
            members[name] = MemberReference(
                name,
                replace(gaussian, mean=gaussian.mean.cpu(), covariance=gaussian.covariance.cpu()),
                here.get(name),
                fresh.get(name),
                classes=classes,
                module=module,
                description=described,
            )
        description = {
            **self.description,
            "n": next(iter(state.moments.values())).count,
            "n_fresh": state.fresh,
            "skipped": sorted(state.broken),
            "depths": sorted(state.depths),
            "sample": self.sample,
            "seed": self.items.seed,
            "split": self.items.share,
        }
        keys = (here.get("keys"), here.get("labels"), fresh.get("keys"), fresh.get("labels"))
        return finished(ReferenceFile(members, description, *keys), landmarks=self.landmarks)


def _states(folder: Path, plan: str) -> list[Path]:
    """State files of a plan, without those that another one includes; none without the base that set the units."""
    if not (folder / "base.safetensors").is_file():
        return []
    described = {path: read_tensors(path)[1] for path in sorted(folder.glob("*.safetensors"))}
    included = {name for rest in described.values() for name in rest["includes"]}
    found = [path for path, rest in described.items() if rest["plan"] == plan and path.name not in included]
    return found if folder / "base.safetensors" in found else []


def _moments(base: Path) -> dict[str, MomentSums]:
    """Shifts and units as a state file holds them."""
    tensors, _ = read_tensors(base)
    names = [key.split("/")[1] for key in tensors if key.startswith("moments/") and key.endswith("/shift")]
    return {n: MomentSums(tensors[f"moments/{n}/shift"], tensors[f"moments/{n}/unit"]) for n in names}
