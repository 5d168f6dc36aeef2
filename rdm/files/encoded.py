"""Items of any shape in shards of a folder, mapped from the disk, with an index that lists them and their hashes.

Opening checks every shard's names, types, sizes and the hash that it says it has, so that missing, truncated and
swapped ones are refused; what it holds is read item by item and not hashed again.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.errors import CorruptFileError
from rdm.files.schema import anything, exactly, expect, listed, number, record, sha256, text
from rdm.files.store import existing, mapped_tensors, read_json, write_json

INDEX, KIND = "encoded.json", "rdm encoded 1"
AGAIN = "copy the whole folder again, or encode the data again"
DTYPES = "float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "uint8", "int8"


def _called(value: Any, where: str, sizes: Any) -> None:
    """A `Check`: a name that tables and files call features by."""
    text()(value, where, sizes)
    if not value.strip() or not value.isprintable() or set(value) & set("/\\[]"):
        exactly("a name without / \\ [ ] and control characters")(value, where, sizes)


_SHARD = record({"count": number(int, low=0), "sha256": sha256})
_INDEX = {
    "kind": exactly(KIND),
    "plan": sha256,
    "name": _called,
    "shape": listed(number(int, low=1)),
    "dtype": text(*DTYPES),
    "shards": listed(_SHARD),
    "skipped": listed(text()),
    "description": anything,
}


def shard_path(folder: Path, k: int) -> Path:
    """Where the k-th shard lies."""
    return folder / f"{k:06d}.safetensors"


def read_index(folder: Path) -> dict[str, Any]:
    """What the index says, checked."""
    found = read_json(folder / INDEX)
    expect(found, record(_INDEX), folder / INDEX, AGAIN)
    return found


def write_index(folder: Path, name: str, plan: str, shards: int, description: Any) -> dict[str, Any]:
    """List what lies in so many shards; returns what the index says."""
    held = [mapped_tensors(shard_path(folder, k)) for k in range(shards)]
    items = held[0][0]["items"]
    found = {
        "kind": KIND,
        "plan": plan,
        "name": name,
        "shape": list(items.shape[1:]),
        "dtype": str(items.dtype).removeprefix("torch."),
        "shards": [{"count": len(tensors["items"]), "sha256": sha} for tensors, _, sha in held],
        "skipped": [name for _, described, _ in held for name in described["skipped"]],
        "description": description,
    }
    write_json(folder / INDEX, found)
    return found


class EncodedItems:
    """Items of a folder by number.

    Raises:
        InputError: no index, or a shard is missing.
        CorruptFileError: an index or shard that is damaged, or not of this folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.index = folder, read_index(folder)
        shards = self.index["shards"]
        self._parts = [self._opened(k, shard) for k, shard in enumerate(shards)]
        self._ends = list(accumulate(shard["count"] for shard in shards))

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedItems, (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all items together."""
        return len(self), *self.index["shape"]

    def item(self, i: int) -> tuple[Tensor, int]:
        """One item and its label, copied from the disk."""
        k = bisect_right(self._ends, i)
        row = i - (self._ends[k - 1] if k else 0)
        tensors = self._parts[k]
        return tensors["items"][row].clone(), int(tensors["labels"][row])

    def _opened(self, k: int, shard: dict[str, Any]) -> dict[str, Tensor]:
        path, count = shard_path(self.folder, k), shard["count"]
        tensors, _, claimed = mapped_tensors(existing(path))
        if claimed != shard["sha256"]:
            raise CorruptFileError(
                f"{path} is of SHA-256 {claimed[:12]}; {INDEX} names {shard['sha256'][:12]}; {AGAIN}"
            )
        wanted = {
            "items": (getattr(torch, self.index["dtype"]), (count, *self.index["shape"])),
            "labels": (torch.int64, (count,)),
        }
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if found != wanted:
            raise CorruptFileError(f"{path} must hold {_words(wanted)}; got {_words(found)}; {AGAIN}")
        return tensors


def _words(held: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> str:
    return ", ".join(f"{name} {dtype} {tuple(shape)}" for name, (dtype, shape) in held.items()).replace("torch.", "")
