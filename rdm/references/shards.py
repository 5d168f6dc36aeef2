"""Every row of a reference, in shards beside its file: `real.safetensors` keeps them in the folder `real.rows`.

A shard holds the rows of a fixed range of batches in item order, a tensor a member, with the items' keys and labels. It
is named by its number and hash, so that shards of another measurement are other files; the reference lists the hashes.
Opening checks names, types, sizes and the hash that a shard says it has; its first read hashes what it holds. Rows are
mapped from the disk, never held.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Batch
from rdm.errors import CorruptFileError, InputError
from rdm.files.store import digest, mapped_tensors, remove_temporaries, write_bytes, write_tensors
from rdm.matching.real import Rows

KIND = {"kind": "rdm rows 1"}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BYTES, ITEMS, SHARDS = 2**24, 2**14, 16  # of a shard at most; shards at least, where there are as many batches
REMEDY = "copy the whole folder again or measure the reference again"


def folder_of(reference: Path) -> Path:
    """Where a reference file keeps its rows."""
    return reference.with_suffix(".rows")


def span_of(batches: int, size: int, widths: Mapping[str, int], dtype: str) -> int:
    """How many batches of `size` items make a shard: a function of the data and the members alone."""
    row = sum(widths.values()) * DTYPES[dtype].itemsize
    return max(1, min(BYTES // (row * size), ITEMS // size, -(-batches // SHARDS)))


class Shard:
    """One file of rows, mapped; checked in full at its first read.

    Args:
        path: the file.
        sha256: what it must hold.
        widths: number of features by member.
        dtype: of the rows.

    Raises:
        InputError: no such file.
        CorruptFileError: truncated, or another one than the reference names.
    """

    def __init__(self, path: Path, sha256: str, widths: Mapping[str, int], dtype: str):
        self.path, self.sha256, self.widths, self.dtype = path, sha256, dict(widths), dtype
        self._tensors, self._description, claimed = mapped_tensors(path)
        self._verified = False
        if claimed != sha256:
            raise CorruptFileError(f"{path} is of SHA-256 {claimed[:12]}; its reference names {sha256[:12]}; {REMEDY}")
        self.count = len(self._tensors["labels"]) if self._tensors.get("labels", torch.tensor(0)).ndim else 0
        wanted = {f"rows/{name}": (DTYPES[dtype], (self.count, width)) for name, width in widths.items()}
        wanted |= {name: (torch.int64, (self.count,)) for name in ("keys", "labels")}
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()}
        if found != wanted:
            wrong = next(n for n in (*wanted, *found) if found.get(n) != wanted.get(n))
            raise CorruptFileError(
                f"{path}: {wrong} must be {_form(wanted, wrong)}; got {_form(found, wrong)}; {REMEDY}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.path, self.sha256, self.widths, self.dtype)  # another process maps the file itself

    def __getitem__(self, name: str) -> Tensor:
        """A tensor of it on the disk, which is not to be written to; the first one is given when all are verified."""
        if not self._verified:
            self.verify()
        return self._tensors[name]

    def verify(self) -> None:
        """Read all of it.

        Raises:
            CorruptFileError: the content is not what its hash says, or not finite.
        """
        if digest(self._tensors, self._description) != self.sha256:
            raise CorruptFileError(f"{self.path}: content does not match its SHA-256; {REMEDY}")
        for name, tensor in self._tensors.items():
            if tensor.numel() and not all(bool(torch.isfinite(end)) for end in tensor.aminmax()):
                raise CorruptFileError(f"{self.path}: NaN or infinity in {name}; {REMEDY}")
        self._verified = True


def _form(held: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], name: str) -> str:
    return "absent" if name not in held else f"{held[name][0]} {held[name][1]}".removeprefix("torch.")


class Shards(Rows):
    """Every row under one member, in item order."""

    def __init__(self, member: str, shards: Sequence[Shard]):
        self.member, self.shards = member, tuple(shards)
        self._starts = [0, *accumulate(shard.count for shard in shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def dimension(self) -> int:
        """Number of features, d."""
        return self.shards[0].widths[self.member]

    @property
    def identity(self) -> str:
        """A hash of those of the shards."""
        return digest({}, [self.member, *(shard.sha256 for shard in self.shards)])

    @property
    def dtype(self) -> str:
        """What the rows were rounded to."""
        return self.shards[0].dtype

    @property
    def labels(self) -> Tensor:
        """Class of every row's item, -1 where it has none."""
        return torch.cat([shard["labels"] for shard in self.shards])

    @property
    def keys(self) -> Tensor:
        """What identifies every row's item."""
        return torch.cat([shard["keys"] for shard in self.shards])

    def take(self, numbers: Tensor) -> Tensor:
        """The rows of these numbers, in their order."""
        numbers = numbers.cpu()
        if len(numbers) and not (0 <= int(numbers.min()) and int(numbers.max()) < len(self)):
            raise IndexError(
                f"rows are numbered 0 to {len(self) - 1}; got {int(numbers.min())} to {int(numbers.max())}"
            )
        found = torch.empty(len(numbers), self.dimension, dtype=DTYPES[self.dtype])
        within = torch.bucketize(numbers, torch.tensor(self._starts[1:]), right=True)
        for k in within.unique().tolist():
            here = torch.nonzero(within == k)[:, 0]
            found[here] = self._rows(k)[numbers[here] - self._starts[k]]
        return found

    def span(self, start: int, stop: int) -> Tensor:
        """Rows start to stop."""
        parts = [torch.empty(0, self.dimension, dtype=DTYPES[self.dtype])]
        for k, (first, last) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            if first < stop and start < last:
                parts.append(self._rows(k)[max(start - first, 0) : stop - first])
        return torch.cat(parts)

    def _rows(self, k: int) -> Tensor:
        return self.shards[k][f"rows/{self.member}"]


class Writer:
    """Gathers the rows of a rank's batches; writes a shard when the last batch of its range has come.

    Args:
        folder: where shards go.
        dtype: of the rows.
        widths: number of features by member.
        span, batches: batches a shard, and of the whole.
        wanted: numbers of the shards to write; batches of others are let go.
    """

    def __init__(
        self, folder: Path, dtype: str, widths: Mapping[str, int], span: int, batches: int, wanted: Sequence[int]
    ):
        self.folder, self.dtype, self.widths = folder, dtype, widths
        self.span, self.batches, self.wanted = span, batches, set(wanted)
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, features: Mapping[str, Tensor]) -> dict[int, str]:
        """Take in a batch, after all before it in its range; the number and hash of the shard that it completes.

        Raises:
            InputError: a feature is beyond the rows' type.
        """
        number = batch.number // self.span
        if number not in self.wanted:
            return {}
        here = ~batch.fresh
        parts = {"keys": batch.keys[here], "labels": batch.labels[here]}
        parts |= {f"rows/{name}": self._rounded(name, rows[here.to(rows.device)]) for name, rows in features.items()}
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part.cpu())
        if batch.number + 1 < min((number + 1) * self.span, self.batches):
            return {}
        return {number: self._written(number)}

    def _rounded(self, name: str, rows: Tensor) -> Tensor:
        rounded = rows.to(DTYPES[self.dtype])
        if not bool(torch.isfinite(rounded).all()):
            most = torch.finfo(rounded.dtype).max
            remedy = {"float16": "give --rows-dtype bfloat16 or float32"}.get(self.dtype, "scale them down")
            raise InputError(
                f"features of {name!r} reach {float(rows.abs().max()):.6g}, beyond {self.dtype}'s {most:.6g}; {remedy}"
            )
        return rounded

    def _written(self, number: int) -> str:
        blank = {f"rows/{name}": torch.empty(0, d, dtype=DTYPES[self.dtype]) for name, d in self.widths.items()}
        tensors = blank | {name: torch.cat(parts) for name, parts in self._parts.items()}
        self._parts = {}
        sha256 = digest(tensors, KIND)
        write_tensors(self.folder / shard_name(number, sha256), tensors, KIND)
        return sha256


def shard_name(number: int, sha256: str) -> str:
    """File name of a shard."""
    return f"{number:06d}-{sha256[:16]}.safetensors"


def opened(reference: Path, kept: Mapping[str, Any], n: int, widths: Mapping[str, int]) -> dict[str, Shards]:
    """Every row by member, of the shards that a reference file of n items names.

    Raises:
        InputError: one is missing, truncated or another than the reference's.
    """
    folder = folder_of(reference)
    if not folder.is_dir():
        raise InputError(f"{reference} keeps its rows in the folder {folder.name} beside it; there is none; {REMEDY}")
    paths = [folder / shard_name(k, sha256) for k, sha256 in enumerate(kept["shards"])]
    if lost := [path.name for path in paths if not path.is_file()]:
        raise InputError(
            f"{reference} keeps its rows in {folder.name}, which lacks {len(lost)} of {len(paths)} shards, {lost[0]} "
            f"first; {REMEDY}"
        )
    shards = [Shard(*file, widths, kept["dtype"]) for file in zip(paths, kept["shards"], strict=True)]
    if (held := sum(shard.count for shard in shards)) != n:
        raise CorruptFileError(f"{reference} is of {n} items and its shards hold {held}; {REMEDY}")
    return {name: Shards(name, shards) for name in widths}


def copied(shards: Sequence[Shard], reference: Path) -> None:
    """Put shards beside a reference file, numbered in this order; those that are there stay."""
    for k, shard in enumerate(shards):
        path = folder_of(reference) / shard_name(k, shard.sha256)
        if not path.exists():
            write_bytes(path, shard.path.read_bytes())


def tidied(reference: Path, shards: Sequence[Shard]) -> None:
    """Remove what other measurements and killed processes left among a reference's shards."""
    folder = folder_of(reference)
    if not folder.is_dir():
        return
    remove_temporaries(folder)
    own = {shard_name(k, shard.sha256) for k, shard in enumerate(shards)}
    for path in folder.iterdir():
        if path.name not in own and re.fullmatch(r"\d{6,}-[0-9a-f]{16}\.safetensors", path.name):
            path.unlink()
    if not own and not any(folder.iterdir()):
        folder.rmdir()
