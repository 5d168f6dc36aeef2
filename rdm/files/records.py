"""A run's log and a sweep's index, checked as they are read (see `rdm.files.schema`)."""

import json
from pathlib import Path
from typing import Any

from rdm.errors import CorruptFileError
from rdm.files.schema import Sizes, anything, exactly, expect, listed, mapped, number, record, text
from rdm.files.store import read_json, read_text
from rdm.trust import paths_outside

REMEDY = "take the line out"
AGAIN = "train it again"


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.jsonl; a last line that was cut off is left out.

    Raises:
        CorruptFileError: the line that is no row, by its number.
    """
    rows = []
    for k, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{path}, line {k}, is no JSON ({error}); {REMEDY}") from error
        expect(row, mapped(number(finite=False)), f"{path}, line {k}", REMEDY)
        expect(row.get("step"), number(int, low=0), f"{path}, line {k}, step", REMEDY)
        rows.append(row)
    return rows


def _label(value: Any, where: str, sizes: Sizes) -> None:
    (text() if isinstance(value, str) else number())(value, where, sizes)


def _goal(value: Any, where: str, sizes: Sizes) -> None:
    text()(value, where, sizes)
    try:
        float(value)
    except ValueError:
        exactly("a number")(value, where, sizes)


def _within(value: Any, where: str, sizes: Sizes) -> None:
    text()(value, where, sizes)
    if outside := paths_outside(value):
        raise CorruptFileError(
            f"{where} of a sweep's index is {outside[0]!r}, outside the sweep's folder; train it again"
        )


POINT = record({"labels": mapped(_label), "bindings": anything, "folder": _within})
SWEEP = record({"file": text(), "axes": listed(text()), "goals": mapped(_goal), "points": listed(POINT)})


def read_index(path: Path) -> dict[str, Any]:
    """A sweep's index: its axes, goals and points.

    Raises:
        CorruptFileError: an entry of another form, or a folder outside the sweep's.
    """
    index = read_json(path)
    expect(index, SWEEP, path, AGAIN)
    labels = record({axis: _label for axis in index["axes"]})
    for k, point in enumerate(index["points"]):
        expect(point["labels"], labels, f"{path}, labels of point {k}", AGAIN)
    return index
