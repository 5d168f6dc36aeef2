"""Tables of numbers, a row an item: CSV and Parquet."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.api import CorruptFileError, InputError, Source, first_line, printable, require, sources
from rdm.data.sources._labels import classes, labelled

SEPARATED, PARQUET = {".csv", ".tsv"}, {".parquet"}
LABELS = "label", "labels", "class", "y"
TRUE, FALSE = {"true", "yes"}, {"false", "no"}
REMEDY = "make one column of 0 and 1 for each of its values"


@sources.register("table", needs='for .parquet pyarrow: pip install "rdm-torch[tables]"')
@dataclass(frozen=True)
class Table(Source):
    """A .csv or .tsv with a head line, or a .parquet, of numbers; a column "label" or "class" is the class."""

    kind = "features"
    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_file() and path.suffix.lower() in SEPARATED | PARQUET

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Every column as numbers, classes too."""
        return _parquet(self.path) if self.path.suffix.lower() in PARQUET else _separated(self.path)

    @cached_property
    def classes(self) -> tuple[str | None, np.ndarray | None]:
        """The column of classes and its values, where there is one."""
        key = next((name for name in self.columns if name.strip().lower() in LABELS), None)
        if key is None:
            return None, None
        return key, classes(self.columns[key], len(self.columns[key]), f"{self.path}: {key!r}")

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """All other columns as the rows of one representation, "features"."""
        kept = [values for name, values in self.columns.items() if name != self.classes[0]]
        if not kept:
            raise InputError(f"{self.path}: expected columns of numbers beside the classes; there are none")
        return {"features": np.stack(kept, 1)}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def name(self, i: int) -> str:  # noqa: D102
        return f"{i:08d}"

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return self.members["features"][i]

    def label(self, i: int) -> int:  # noqa: D102
        return labelled(self.classes[1], i)


def _separated(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            separator = max("\t,;" if path.suffix.lower() == ".tsv" else ",;\t", key=first.count)
            file.seek(0)
            head, *rows = (row for row in csv.reader(file, delimiter=separator) if row)
    except (ValueError, csv.Error) as error:
        raise CorruptFileError(f"{path} is no table of UTF-8 text ({first_line(error)})") from error
    if len(set(head)) < len(head):
        raise InputError(f"{path}: expected a head line of distinct names; got {printable(', '.join(head))}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise InputError(f"{path}: row {number} has {len(row)} cells, expected {len(head)} as the head line has")
    if head and all(map(_is_number, head)):
        raise InputError(f"{path}: expected a head line of names; got numbers; write names above them")
    cells = list(zip(*rows, strict=True)) or [()] * len(head)
    return {name: _numbers(values, name, path) for name, values in zip(head, cells, strict=True)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(cells: tuple[str, ...], name: str, path: Path) -> np.ndarray:
    """A column as float64; true and false, yes and no as 1 and 0."""
    words = {word: float(word in TRUE) for word in TRUE | FALSE}
    values = np.empty(len(cells))
    for k, cell in enumerate(cells):
        plain = cell.strip().lower()
        try:
            values[k] = words[plain] if plain in words else float(plain)
        except ValueError:
            what = f"it is {cell[:40]!r}" if plain else "it is empty; fill it or leave its row out"
            remedy = f"; {REMEDY}" if plain else ""
            raise InputError(
                printable(f"{path}: row {k + 2}, column {name!r}: expected a number; {what}{remedy}")
            ) from None
    return values


def _parquet(path: Path) -> dict[str, np.ndarray]:
    parquet = require("pyarrow.parquet", extra="tables", owner=str(path))
    try:
        table = parquet.read_table(path)
    except Exception as error:  # whatever pyarrow raises
        raise CorruptFileError(printable(f"{path} cannot be read ({first_line(error)})")) from error
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise InputError(printable(f"{path}: column {name!r} is empty in {column.null_count} rows; fill them"))
        values = column.to_numpy()
        if values.dtype.kind not in "biuf":
            raise InputError(printable(f"{path}: column {name!r} holds {column.type}, expected numbers; {REMEDY}"))
        found[name] = values.astype(np.float64)
    return found
