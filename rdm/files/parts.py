"""Tensors whose rows several processes hold: each writes a file of its own into the one folder that they share.

The folder is under a temporary name until all files are in it, which the first process watches without asking the
others: nothing waits for training, and training for nothing.
"""

import contextlib
import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.errors import CorruptFileError
from rdm.files.schema import expect, number, record, text
from rdm.files.store import digest, read_tensors, write_bytes, write_tensors

PATIENCE = 60.0  # seconds without a new byte after which a part is given up


class Shared(NamedTuple):
    """Which process writes: its number among how many, and a name that this writing has and no other."""

    number: int
    processes: int
    name: str

    @property
    def described(self) -> dict[str, Any]:
        """What the files of all have in common."""
        return {"processes": self.processes, "name": self.name}


def folder_of(path: Path, shared: Shared) -> Path:
    """The temporary folder beside `path`, one for all processes."""
    return path.with_name(f".{path.name}.{shared.name[:8]}")


def write_part(folder: Path, tensors: Mapping[str, Tensor], shared: Shared) -> None:
    """Write this process's rows; if that fails the one that waits is told, and the error is raised."""
    at = folder / _name(shared.number)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(at, tensors, {**shared.described, "number": shared.number})
    except OSError as error:
        with contextlib.suppress(OSError):  # else it waits in vain, for a while
            write_bytes(at.with_suffix(".failed"), str(error.errno or errno.EIO).encode())
        raise


def await_parts(folder: Path, shared: Shared) -> None:
    """Wait for the files of all processes.

    Raises:
        OSError: one could not write its part, or wrote nothing for a minute.
    """
    seen, since = -1, time.monotonic()
    while missing := [k for k in range(shared.processes) if not (folder / _name(k)).exists()]:
        for k in missing:
            if (failed := (folder / _name(k)).with_suffix(".failed")).exists():
                number = int(failed.read_bytes() or errno.EIO)
                raise OSError(number, f"rank {k}: {os.strerror(number)}")
        if (size := _size(folder)) != seen:
            seen, since = size, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise OSError(errno.ETIMEDOUT, f"rank {missing[0]} did not write its part for {PATIENCE:.0f} s")
        time.sleep(0.005)


def read_parts(folder: Path, described: Any) -> dict[str, Tensor]:
    """Whole tensors from the files of all processes.

    Raises:
        InputError: one of the files is missing.
        CorruptFileError: they do not belong together.
    """
    expect(described, record({"processes": number(int, low=1), "name": text()}), folder, "train again")
    parts: list[dict[str, Tensor]] = []
    for k in range(described["processes"]):
        tensors, words = read_tensors(folder / _name(k))
        same = digest({}, words) == digest({}, {**described, "number": k})  # true is no 1
        if not same or (parts and tensors.keys() != parts[0].keys()):
            raise CorruptFileError(f"{folder / _name(k)} does not belong to the other parts")
        parts.append(tensors)
    return {name: _joined([part[name] for part in parts], folder, name) for name in parts[0]}


def _joined(rows: list[Tensor], folder: Path, name: str) -> Tensor:
    kinds = {(each.dtype, each.shape[1:]) for each in rows if each.ndim}
    if len(kinds) != 1 or not all(each.ndim for each in rows):
        raise CorruptFileError(f"{folder}: the parts of tensor {name} do not fit together")
    return torch.cat(rows)


def _size(folder: Path) -> int:
    size = 0
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has got its name meanwhile
            size += path.stat().st_size
    return size


def _name(number: int) -> str:
    return f"rows-{number:05d}.safetensors"
