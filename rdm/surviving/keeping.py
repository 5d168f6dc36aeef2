"""Which checkpoints of a run stay: by number, by steps, by time, and the best by a number of the log."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Row = Mapping[str, float]  # of the log, at the step of a checkpoint


@dataclass(frozen=True)
class Keeping:
    """What stays; everything else goes. A checkpoint that goes is asked for by none of these.

    Args:
        newest: so many of the newest.
        every: the first one at or after each multiple of so many steps, for ever.
        hours: the first one at or after each multiple of so many hours of the run, for ever.
        lowest, highest: the one with the lowest, the highest value of this number of the log; the earliest of equals.
    """

    newest: int = 2
    every: int | None = None
    hours: float | None = None
    lowest: str | None = None
    highest: str | None = None

    def kept(self, rows: Iterable[Row]) -> set[int]:
        """Steps of the checkpoints that stay, of those with these rows ("step", "seconds" and what else was logged).

        What stays of what stayed and a newer one is what would stay of all: nothing that goes is missed later.
        """
        rows = sorted(rows, key=lambda row: row["step"])
        kept = {int(row["step"]) for row in rows[-self.newest :]}
        if self.every is not None:
            kept |= _first_of_each(rows, "step", self.every)
        if self.hours is not None:
            kept |= _first_of_each(rows, "seconds", 3600 * self.hours)
        for name, best in ((self.lowest, min), (self.highest, max)):
            kept |= set() if name is None else _best(rows, name, best)
        return kept

    def unmeasured(self, row: Row) -> list[str]:
        """Which of the numbers that the best are told by a row does not have."""
        return [name for name in (self.lowest, self.highest) if name is not None and name not in row]


def _first_of_each(rows: Iterable[Row], name: str, length: float) -> set[int]:
    """The first row in each interval of a length but the one from 0."""
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(math.floor(row.get(name, 0) / length), int(row["step"]))
    return {step for interval, step in first.items() if interval > 0}


def _best(rows: Iterable[Row], name: str, best: Callable[..., Row]) -> set[int]:
    measured = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    return {int(best(measured, key=lambda row: row[name])["step"])} if measured else set()
