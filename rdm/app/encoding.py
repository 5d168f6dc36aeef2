"""What `rdm encode` does: items through one encoder into shards of a folder, which is a source from then on.

A shard holds a fixed range of batches in the order of the items: `items`, whatever shape and type the encoder gives,
and `labels`. Whole shards are kept by any interruption; the index, written last, lists them with their hashes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rdm.app.sampling import device
from rdm.data.items import Batch, Items, first_item
from rdm.data.source import Form, hashed, open_source
from rdm.distributed import barrier, rank, together, world_size
from rdm.errors import CorruptFileError, InputError, Interrupted, MismatchError, UnknownNameError
from rdm.files.encoded import INDEX, read_index, shard_path, write_index
from rdm.files.store import digest, mapped_tensors, remove_temporaries, write_tensors
from rdm.numbers import Count, Seed, Workers, validated
from rdm.progress import progress, stop_requests
from rdm.randomness import seeded
from rdm.references.measure import FIT
from rdm.registry import nearest, networks, representations
from rdm.surviving.ranks import started
from rdm.terminal import say

BYTES, ITEMS = 2**24, 2**14  # of a shard at most
Encode = Callable[[Tensor, Tensor], Tensor]  # of items and labels


class Encoder(NamedTuple):
    """What turns a batch into rows of any shape, and what identifies it."""

    encode: Encode
    description: dict[str, Any]


@validated
def encode_data(
    data: Path,
    out: Path,
    *,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    size: Count | None = None,
    channels: Literal[1, 3] | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float32",
    seed: Seed = 0,
    batch: Count = 32,
    workers: Workers = 0,
    skip_broken: bool = False,
) -> None:
    """Encode a source's items by a representation or a network, on all ranks, into shards with their labels.

    The same command goes on after an interruption and ends with the same bytes, whatever ranks and workers.

    Raises:
        InputError: items that cannot be read, an unknown encoder, values beyond the type.
        MismatchError: the folder holds what was encoded otherwise.
        Interrupted: on Ctrl-C or SIGTERM.
    """
    with started(), seeded(seed):
        with together():
            source, form = open_source(data), Form(size, channels)
            items = Items([(source, False)], form, first_item(source, form), size=batch)
            encoder = encoder_of(name, arguments or {}, items)
            description = {
                "data": source.path.name,
                "names": hashed(*(source.name(i) for i in range(len(source)))),
                "form": {"size": size, "channels": channels, "shape": list(items.first.value.shape)},
                "encoder": encoder.description,
                "dtype": dtype,
                "batch": batch,
                "skip_broken": skip_broken,
            }
            run = _Run(items, encoder, out, description, getattr(torch, dtype))
            if rank() == 0:
                remove_temporaries(out)
            missing = run.missing()
        barrier()  # all ranks have looked before one writes
        run.encode(missing[rank() :: world_size()], workers)
        barrier()
        if rank() == 0:
            say(run.finish())
        barrier()


def encoder_of(name: str, arguments: Mapping[str, Any], items: Items) -> Encoder:
    """A registered representation, fitted where it needs that; or a network, by its `encode` where it has one.

    Raises:
        UnknownNameError: neither is called so.
    """
    if name in representations:
        member = representations.build(name, **arguments).fitted(*items.pick(FIT)).to(device())

        def features(values: Tensor, labels: Tensor) -> Tensor:
            member.check(values)
            return member(values, labels if member.conditional else None)

        described = {"settings": dict(member.settings), "dtype": member.precision}
        return Encoder(features, {"name": member.name, "fingerprint": member.fingerprint, **described})
    if name not in networks:
        close = nearest(name, [*representations, *networks])
        raise UnknownNameError(f"unknown representation or network {name!r}{close}")
    network = networks.build(name, **arguments).eval().requires_grad_(False).to(device())
    forward = getattr(network, "encode", network)
    fingerprint = digest(network.state_dict(), repr(network))
    return Encoder(lambda values, _: forward(values), {"name": name, "fingerprint": fingerprint})


@dataclass(frozen=True)
class _Run:
    items: Items
    encoder: Encoder
    out: Path
    description: dict[str, Any]
    dtype: torch.dtype

    @cached_property
    def plan(self) -> str:
        """Hash of all that the bytes follow from."""
        return digest({}, self.description)

    @cached_property
    def blank(self) -> Tensor:
        """No rows, of the shape and type of all."""
        return self.rows(self.items.first.value[None], torch.tensor([self.items.first.label]))[:0]

    @cached_property
    def span(self) -> int:
        """Batches of a shard: a function of the data and the encoder alone."""
        row = self.blank.element_size() * math.prod(self.blank.shape[1:])
        return max(1, min(BYTES // row, ITEMS) // self.items.size)

    @property
    def shards(self) -> int:
        """How many there will be."""
        return -(-len(self.items) // self.span)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there; damaged ones are made again.

        Raises:
            MismatchError: those that are there were made otherwise.
        """
        if (self.out / INDEX).exists() and read_index(self.out)["plan"] != self.plan:
            self._refuse(self.out / INDEX)
        return [k for k in range(self.shards) if not self._sound(k)]

    def _sound(self, number: int) -> bool:
        path = shard_path(self.out, number)
        if not path.exists():
            return False
        try:
            tensors, described, sha256 = mapped_tensors(path)
            whole = digest(tensors, described) == sha256
        except CorruptFileError:
            return False
        if whole and described.get("plan") != self.plan:
            self._refuse(path)
        return whole and described.get("shard") == number

    def _refuse(self, path: Path) -> None:
        raise MismatchError(
            f"{path} was encoded otherwise: other data, encoder or options; give the same command, or another --out"
        )

    def encode(self, shards: Sequence[int], workers: int) -> None:
        """Write these shards."""
        span, parts, broken = self.span, list[tuple[Tensor, Tensor]](), list[str]()
        numbers = [k for n in shards for k in range(n * span, min((n + 1) * span, len(self.items)))]
        shown, source = progress(len(numbers), quiet=rank() > 0), self.items.read(numbers, workers=workers)
        with shown as report, stop_requests(together=False) as stopping, source as batches:
            for done, batch in enumerate(batches, 1):
                self._refuse_broken(batch)
                broken += batch.broken
                if len(batch.values):
                    parts.append((self.rows(batch.values, batch.labels), batch.labels))
                if done == len(numbers) or numbers[done] // span != batch.number // span:
                    self._write(batch.number // span, parts, broken)
                    parts, broken = [], []
                report.update(done, {})
                if stopping():
                    raise Interrupted(f"interrupted; {self.out} keeps whole shards, and the same command goes on")

    def _refuse_broken(self, batch: Batch) -> None:
        if batch.error:
            raise InputError(batch.error)
        if batch.broken and not self.description["skip_broken"]:
            raise InputError(f"{batch.broken[0]}; mend or remove it, or give --skip-broken")

    def rows(self, values: Tensor, labels: Tensor) -> Tensor:
        """What the encoder gives for items, in the type that is kept.

        Raises:
            InputError: no row an item, or numbers that are not finite in that type.
        """
        name = self.encoder.description["name"]
        with torch.no_grad():
            rows = self.encoder.encode(values.to(device()), labels.to(device()))
        if not isinstance(rows, Tensor) or rows.ndim < 2 or len(rows) != len(values):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise InputError(f"encoder {name!r} must give one row an item, ({len(values)}, ...); got {got}")
        if not rows.is_floating_point():
            return rows.cpu()
        kept = rows.to(self.dtype).cpu()
        if not bool(torch.isfinite(kept).all()):
            reach = "not finite" if not bool(torch.isfinite(rows).all()) else f"beyond {self.description['dtype']}"
            raise InputError(f"encoder {name!r} gives numbers that are {reach}; give --dtype float32 or other items")
        return kept

    def _write(self, number: int, parts: Sequence[tuple[Tensor, Tensor]], broken: list[str]) -> None:
        sides = zip((self.blank, torch.empty(0, dtype=torch.int64)), *parts, strict=True)
        rows, labels = map(torch.cat, sides)
        described = {"plan": self.plan, "shard": number, "skipped": broken}
        write_tensors(shard_path(self.out, number), {"items": rows, "labels": labels}, described)

    def finish(self) -> str:
        """Write the index; what there is, in words."""
        found = write_index(self.out, self.encoder.description["name"], self.plan, self.shards, self.description)
        n, skipped = sum(shard["count"] for shard in found["shards"]), found["skipped"]
        left = f"; {len(skipped)} broken items left out: {skipped[0]}" if skipped else ""
        return f"{self.out}: {n} items {tuple(found['shape'])} {found['dtype']} by {found['name']}{left}"
