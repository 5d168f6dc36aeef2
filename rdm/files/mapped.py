"""Tensors on disk, mapped into memory: what is taken is read, and no more."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError, first_line
from rdm.files.store import existing

SLICE = 65_536  # rows read at once where all are


class Table:
    """Rows "n ..." of a tensor that lies in one file, or in several, one after the other."""

    def __init__(self, parts: list[Tensor], path: Path):
        self.parts, self.path = parts, path
        self.dtype, self.shape = parts[0].dtype, (sum(map(len, parts)), *parts[0].shape[1:])
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Tensor) -> Tensor:
        """Copies of some rows, in their order, on the CPU.

        Raises:
            InputError: numbers of no row.
        """
        rows = rows.cpu().contiguous()
        if len(rows) and not (0 <= int(rows.min()) and int(rows.max()) < len(self)):
            raise InputError(
                f"{self.path} has rows from 0 to {len(self) - 1}; asked for {int(rows.min())} to {int(rows.max())}"
            )
        if len(self.parts) == 1:
            return self.parts[0][rows]
        found = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        holder = torch.searchsorted(self._ends, rows, right=True)
        for k in holder.unique().tolist():
            here = holder == k
            found[here] = self.parts[k][rows[here] - (self._ends[k] - len(self.parts[k]))]
        return found

    def whole(self) -> Tensor:
        """All rows; still mapped where they lie in one file."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    def empty_rows(self) -> list[int]:
        """The first rows that are zero throughout, a few at most."""
        for start in range(0, len(self), SLICE):
            rows = self.take(torch.arange(start, min(start + SLICE, len(self))))
            if len(zero := torch.nonzero(~(rows != 0).flatten(1).any(1)).flatten()):
                return [start + k for k in zero[:5].tolist()]
        return []


def open_table(path: Path, tensor: str | None = None) -> Table:
    """The tensor called so, or the only one, of a safetensors or .npy file, or of the shards in a folder.

    Raises:
        InputError: no such file or tensor, no row, shards of different forms.
        CorruptFileError: damaged, or of another kind.
    """
    files = [existing(path)] if not path.is_dir() else sorted([*path.glob("*.safetensors"), *path.glob("*.npy")])
    if not files:
        raise InputError(f"expected a table in {path}; it holds no safetensors or .npy file")
    parts = [_npy(file) if file.suffix == ".npy" else _safetensors(file, tensor) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.ndim == 0 or part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype:
            raise InputError(
                f"{file} must hold rows as {files[0]} does, {parts[0].dtype} {tuple(parts[0].shape[1:])}; got "
                f"{part.dtype} {tuple(part.shape)}"
            )
    table = Table(parts, path)
    if len(table) == 0 or 0 in table.shape:
        raise InputError(f"{path} holds an empty table of shape {tuple(table.shape)}")
    return table


def _npy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))  # "c": a read-only map warns
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise CorruptFileError(f"{path} is no .npy file of numbers ({first_line(error)})") from error


def _safetensors(path: Path, name: str | None) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if name is None and len(names) == 1:
                name = names[0]
            if name in names:
                return file.get_tensor(name)
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is no safetensors file ({first_line(error)}); it is damaged") from error
    raise InputError(f"{path} holds the tensors {', '.join(sorted(names))}; got {name!r}; name one of them")
