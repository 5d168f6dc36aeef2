"""Pairings of an objective and a memory that a study saw fail: rows of pairings.csv, which say the remedy, too.

A row holds for objectives and memories by their registered names, from a learning rate on; its figures are those of a
cell of the study's table (test: tests/test_pairings.py).
"""

import csv
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rdm.api import Memory, Objective, memories, objectives


class Pairing(NamedTuple):
    """One that failed."""

    objective: str
    memory: str
    riding: bool  # whether it is riding memories that failed
    rate: float  # from which on
    table: str  # of the figures, under experiments/
    training: str  # its cells, and the figures in them
    population: str
    found: str
    beside: str
    without: str
    remedy: str


@cache
def pairings() -> tuple[Pairing, ...]:
    """All rows."""
    with Path(__file__).with_name("pairings.csv").open(newline="") as file:
        typed = ({**row, "riding": row["riding"] == "yes", "rate": float(row["rate"])} for row in csv.DictReader(file))
        return tuple(Pairing(**row) for row in typed)


def warn_of_pairings(objective: Objective | Mapping[str, Objective], memory: Memory | None, rate: float | None) -> None:
    """Warn, in one line for each, of pairings that failed at this learning rate or a smaller one."""
    if memory is None or rate is None:
        return
    known = {entry.build: name for registry in (objectives, memories) for name, entry in registry.items()}
    chosen = objective.values() if isinstance(objective, Mapping) else [objective]
    names = {known.get(type(each)) for given in chosen for each in _nested(given)}
    for row in pairings():
        same = (row.memory, row.riding) == (known.get(type(memory)), memory.riding)
        if row.objective in names and same and rate >= row.rate:
            memory_said = f"{row.memory}, riding" if row.riding else row.memory
            warnings.warn(
                f"{row.objective} with a memory ({memory_said}) at a rate of {row.rate:g} or more failed in the spiral "
                f"study: distance {row.found}, {row.without} without; {row.remedy}",
                stacklevel=2,
            )


def _nested(objective: Any) -> Iterator[Objective]:
    """An objective, and those that it is made of."""
    yield objective
    if is_dataclass(objective):
        for field in fields(objective):
            if isinstance(inner := getattr(objective, field.name), Objective):
                yield from _nested(inner)
