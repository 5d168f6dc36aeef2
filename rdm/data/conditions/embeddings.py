"""Rows of a table of embeddings on disk."""

from pathlib import Path

from torch import Tensor

from rdm.api import Condition, InputError, Law, Numbers, Table, conditions, open_table


@conditions.register("embeddings", examples=(), needs="a table on disk")
class Embeddings(Numbers):
    """Rows of a table on disk, such as texts' contexts, with padding masks and the rows' numbers.

    The file is mapped into memory: what is drawn is read, and no more. A generator is given the rows alone, or, with
    a mask or numbers, a mapping with "embedding", "mask" (true at tokens) and "id" (the row's number, which finds the
    caption in other tables, as joint features want it).

    Args:
        path: safetensors or .npy file of "n ..."; or a folder of shards, one table in the order of their names.
        tensor: its name in a safetensors file; None for the only one.
        mask: of padding, "n length": the name of a tensor of the same file, or the path of another file.
        ids: give the rows' numbers too.
        law: which rows: "uniform", "data", or probabilities, one a row (see `labels`).

    Raises:
        InputError: no such file or tensor; a mask that does not fit the table; a row without tokens.
    """

    def __init__(
        self, path: str, tensor: str | None = None, mask: str | None = None, ids: bool = False, law: Law = "uniform"
    ):
        self.table = open_table(Path(path), tensor)
        self.mask = None if mask is None else _mask(path, mask, self.table)
        self.ids = ids
        super().__init__(len(self.table), law)

    def read(self, drawn: Tensor) -> Condition:
        """The rows of these numbers."""
        rows = self.table.take(drawn)
        if self.mask is None and not self.ids:
            return rows
        parts = {"embedding": rows, "mask": None if self.mask is None else self.mask.take(drawn) != 0}
        return {name: part for name, part in parts.items() if part is not None} | ({"id": drawn} if self.ids else {})


def _mask(path: str, mask: str, table: Table) -> Table:
    found = open_table(Path(mask)) if Path(mask).exists() else open_table(Path(path), mask)
    if found.shape != table.shape[:2] or found.dtype.is_floating_point:
        raise InputError(
            f"the mask {mask!r} must be whole numbers or truth values {tuple(table.shape[:2])}, one a token of {path}; "
            f"got {found.dtype} {tuple(found.shape)}"
        )
    if empty := found.empty_rows():
        raise InputError(f"the mask {mask!r} leaves row {empty[0]} of {path} without a token; mask padding alone")
    return found
