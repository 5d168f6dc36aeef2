"""One pass over a source through every member of a battery: what `rdm reference` does, resumable and exact.

The items are taken in batches of consecutive numbers, each encoded as one whatever the workers and ranks; sums are
exact and the sample is keyed by the items (`accumulate`), so that the file's bytes depend on nothing else. While
it runs, each rank keeps its state in a folder beside the file, replaced atomically every few seconds; the next call,
of any number of ranks, merges what is there and sound (`partial`) and measures the batches that are missing. Where all
rows are kept, a range of batches is one rank's, which writes their shard (`shards`); a shard that is missing is encoded
again whole, its batches that are measured already for their rows alone.
"""

import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Batch, Items
from rdm.data.source import hashed
from rdm.distributed import barrier, rank, world_size
from rdm.errors import InputError, Interrupted, MismatchError
from rdm.files.store import digest, read_tensors, remove_folder
from rdm.matching.representation import Battery, Representation
from rdm.matching.statistic import checked
from rdm.progress import progress, stop_requests
from rdm.references.accumulate import MomentSums
from rdm.references.file import Member, Reference, finished
from rdm.references.partial import State, moments_of, sound_states
from rdm.references.shards import Shard, Shards, Writer, folder_of, shard_name, span_of

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

    @property
    def held_out(self) -> list[str] | None:
        """Names of the members that no training sees; None for features already computed."""
        return None if self.battery is None else [member.name for member in self.battery.held_out]

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
    dtype: str | None = None  # of all rows, where they are kept

    def run(self) -> Reference | None:
        """Measure what is missing, write the file (rank 0), return it there.

        Raises:
            InputError: an item is broken and `skip_broken` is off, or is unlike the first one.
            Interrupted: on Ctrl-C or SIGTERM, when what was measured is saved.
        """
        plan, folder = self._plan(), self.out.with_name(f".{self.out.name}.partial")
        state = self._begin(folder, plan)
        path = folder / f"{uuid.uuid4().hex}-{rank()}.safetensors"
        self._pass(state, path, plan).save(path, plan)
        barrier()
        found = None
        if rank() == 0:
            whole = self._blank(state.moments)
            for part in self._states(folder, plan):
                whole.merge(part)
            if whole.items != self.items.total or self._missing(whole):
                raise MismatchError(
                    f"{self.out}: {whole.items} of {self.items.total} items are measured; something else writes into "
                    f"{folder}; the same command measures the others"
                )
            found = self._file(whole)
            found.write(self.out, self.member)
            remove_folder(folder)
        barrier()
        return found

    def _pass(self, state: State, path: Path, plan: str) -> State:
        """What this rank measures of what the state lacks."""
        missing, mine, saved, read = self._missing(state), self._blank(state.moments), time.monotonic(), 0
        before, writer = len(self.items) - sum(map(len, missing.values())), self._writer(state)
        numbers = [number for ours in list(missing.values())[rank() :: world_size()] for number in ours]
        shown = progress(len(self.items), done=before, quiet=rank() > 0)
        source = self.items.read(numbers, workers=self.workers)
        with shown as report, stop_requests(together=False) as stopping, source as batches:
            for k, batch in enumerate(_until(stopping, batches)):
                read += len(batch.values) + len(batch.broken)
                self._refuse(batch, len(mine.broken) + len(batch.broken), read)
                features = self.encoders.features(batch.values, batch.labels) if len(batch.values) else {}
                if writer is not None:
                    mine.shards |= writer.add(batch, features)
                if not state.done[batch.number]:
                    mine.add(batch, features)
                report.update(min(before + (k + 1) * world_size(), len(self.items)), {})
                if time.monotonic() - saved > self.save_every:
                    mine.save(path, plan)
                    saved = time.monotonic()
        if stopping():
            mine.save(path, plan)
            state.done |= mine.done
            state.shards |= mine.shards
            kept = len(self.items) - sum(map(len, self._missing(state).values()))
            raise Interrupted(f"interrupted; {kept} of {len(self.items)} batches are kept, the same command goes on")
        return mine

    def _missing(self, state: State) -> dict[int, list[int]]:
        """Batches to encode, by the number of their shard; each is by itself where no rows are kept."""
        found, done = {}, state.done.tolist()
        span = 1 if self.dtype is None else self._span(state)
        for k, start in enumerate(range(0, len(done), span)):
            lacks = self.dtype is not None and k not in state.shards
            batches = range(start, min(start + span, len(done)))
            if chosen := [number for number in batches if lacks or not done[number]]:
                found[k] = chosen
        return found

    def _span(self, state: State) -> int:
        assert self.dtype is not None
        return span_of(len(self.items), self.items.size, state.widths, self.dtype)

    def _writer(self, state: State) -> Writer | None:
        if self.dtype is None:
            return None
        wanted = [k for k in self._missing(state) if k not in state.shards]
        return Writer(folder_of(self.out), self.dtype, state.widths, self._span(state), len(self.items), wanted)

    def _shard(self, state: State, number: int) -> Shard:
        assert self.dtype is not None
        sha256 = state.shards[number]
        return Shard(folder_of(self.out) / shard_name(number, sha256), sha256, state.widths, self.dtype)

    def _drop_damaged(self, state: State) -> None:
        """Remove shards that a state names and that are not sound, so that they are written again."""
        for number, sha256 in state.shards.items():
            try:
                self._shard(state, number).verify()
            except InputError as problem:
                warnings.warn(f"{problem}; what it held is encoded again", stacklevel=2)
                (folder_of(self.out) / shard_name(number, sha256)).unlink(missing_ok=True)

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
            earlier = self._states(folder, plan)
            if not earlier:
                shutil.rmtree(folder, ignore_errors=True)
                self._blank(self._pilot()).save(base, plan)
            elif earlier != [base]:
                state = self._blank(self._moments(base))
                for path in earlier:
                    state.merge(path)
                state.save(base, plan, [path.name for path in earlier if path != base])
        barrier()
        state = self._blank(self._moments(base))
        state.merge(base)
        if rank() == 0:
            self._drop_damaged(state)
        barrier()
        place = folder_of(self.out)
        state.shards = {k: sha for k, sha in state.shards.items() if (place / shard_name(k, sha)).is_file()}
        for path in folder.glob("*-*.safetensors") if rank() == 0 else ():
            path.unlink()  # merged, or of another plan
        barrier()
        return state

    def _pilot(self) -> dict[str, MomentSums]:
        items, labels = self.items.pick(max(16, min(PILOT, self.items.total // 32)))
        return {name: MomentSums.like(rows.cpu()) for name, rows in self.encoders.features(items, labels).items()}

    def _moments(self, base: Path) -> dict[str, MomentSums]:
        return moments_of(read_tensors(base)[0], list(self.encoders.describe()), base)

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
                "options": [self.sample, self.per_class, self.landmarks, self.skip_broken, self.dtype],
            },
        )

    def _states(self, folder: Path, plan: str) -> list[Path]:
        sizes = [min(self.items.size, self.items.total - k * self.items.size) for k in range(len(self.items))]
        return sound_states(folder, plan, list(self.encoders.describe()), self._blank, sizes)

    def _file(self, state: State) -> Reference:
        samples = {side: reservoir.state() for side, reservoir in state.samples.items()}
        here, fresh = samples["reference"], samples["fresh"]
        check_apart(here.get("keys"), fresh.get("keys"))
        modules = {m.name: m for m in self.encoders.members if m.fit is not None and m.module is not None}
        shards = [self._shard(state, number) for number in sorted(state.shards)]
        members = {}
        for name, described in self.encoders.describe().items():
            module = modules[name].module.state_dict() if name in modules else {}  # type: ignore[union-attr]
            classes = {k: s.gaussian() for k, s in sorted(state.classes[name].items()) if k >= 0 and s.count > 1}
            gaussian = state.moments[name].gaussian()
            members[name] = Member(
                name,
                replace(gaussian, mean=gaussian.mean.cpu(), covariance=gaussian.covariance.cpu()),
                here.get(name),
                fresh.get(name),
                Shards(name, shards) if shards else None,
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
        return finished(Reference(members, description, None, *keys), landmarks=self.landmarks)


def _until(stopping: Callable[[], bool], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches until a stop is asked for, by a signal that ends the reading processes too."""
    try:
        for batch in batches:
            yield batch
            if stopping():
                return
    except RuntimeError:
        if not stopping():
            raise


def check_apart(keys: Tensor | None, fresh: Tensor | None) -> None:
    """Refuse a fresh split that holds items of the reference.

    Raises:
        InputError: how many at least.
    """
    shared = 0 if keys is None or fresh is None else len(set(keys.tolist()) & set(fresh.tolist()))
    if shared:
        raise InputError(f"both sides hold {shared} equal items or more; a fresh split is of other items")
