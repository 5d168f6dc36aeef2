"""What a sweep's folder holds: the index that the sweep wrote, each point's result or error, and a summary of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from rdm.files.records import read_index
from rdm.judging.against import REAL
from rdm.matching.metric import Metric, of_groups
from rdm.reports.run import INDEX, read_result

ERROR = "error.txt"
SEED = "rdm.train.seed"

Label = str | int | float
T = TypeVar("T")


class Row(NamedTuple):
    """One point of the grid."""

    labels: tuple[Label, ...]  # one an axis
    folder: str
    status: str  # "done", "failed" or "missing"
    error: str
    seconds: float | None
    metrics: dict[str, Metric]


class Line(NamedTuple):
    """One line of the summary: the points that differ in nothing but the seed."""

    labels: tuple[Label, ...]  # of the axes other than the seed
    cells: dict[str, Metric]  # of several seeds the mean, with Student's interval
    rows: list[Row]

    @property
    def done(self) -> list[Row]:
        """The points that have a result."""
        return [row for row in self.rows if row.status == "done"]

    @property
    def name(self) -> str:
        """The labels in words."""
        return ", ".join(map(str, self.labels)) or "all points"


@dataclass(frozen=True)
class Found:
    """A sweep's axes and rows."""

    axes: list[str]
    goals: dict[str, float]
    rows: list[Row]
    command: str = ""

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def own_metrics(self) -> list[str]:
        """Metrics of the trained generators, without those of what they are compared with."""
        return [name for name in self.metrics if ": " not in name]

    @property
    def seed(self) -> int | None:
        """Position of the seed among the axes, where it has several values."""
        position = self.axes.index(SEED) if SEED in self.axes else None
        several = position is not None and len({row.labels[position] for row in self.rows}) > 1
        return position if several else None

    @property
    def shown_axes(self) -> list[str]:
        """Axes other than the seed: last parts of their names where these differ."""
        return short(without(tuple(self.axes), self.seed))

    def summary(self) -> list[Line]:
        """Points that differ in the seed alone become one line."""
        groups: dict[tuple[Label, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(without(row.labels, self.seed), []).append(row)
        return [Line(labels, self._means(rows, ""), rows) for labels, rows in groups.items()]

    def baselines(self) -> dict[str, dict[str, Metric]]:
        """What the generators are compared with, real data last; the mean where points found different values."""
        names = dict.fromkeys(name.split(": ")[0] for name in self.metrics if ": " in name)
        ordered = [*(name for name in names if name != REAL), *(name for name in names if name == REAL)]
        return {name: self._means(self.rows, f"{name}: ") for name in ordered}

    def marks(self, lines: Sequence[Line], metric: str) -> dict[int, str]:
        """Which lines are "best" by a metric, or a "tie" with the best: their intervals overlap.

        None where the metric has no goal, or the intervals tell none apart.
        """
        goal = self.goals.get(metric, -math.inf)
        found = {k: line.cells[metric] for k, line in enumerate(lines) if metric in line.cells}
        if math.isnan(goal) or len(found) < 2:
            return {}

        def cost(k: int) -> float:
            value = found[k].value
            return abs(value - goal) if math.isfinite(goal) else -math.copysign(value, goal * value)

        best = min(found, key=cost)
        low, high = _ends(found[best])
        marks = {k: "tie" for k, m in found.items() if _ends(m)[0] <= high and low <= _ends(m)[1]}
        return {} if len(marks) == len(found) else marks | {best: "best"}

    def _means(self, rows: Sequence[Row], prefix: str) -> dict[str, Metric]:
        """Each metric of the points; of several values the mean, with Student's interval of independent seeds."""
        cells = {}
        for name in self.own_metrics:
            found = [row.metrics[prefix + name] for row in rows if prefix + name in row.metrics]
            distinct = list({metric[:3]: metric for metric in found}.values())
            if len(distinct) == 1:
                cells[name] = found[0]
            elif found:
                found = distinct if prefix else found  # points of one seed agree about what they are compared with
                least = 0.0 if all(metric.low >= 0 for metric in found) else -math.inf
                share = self.goals.get(name) == math.inf and all(metric.high <= 1 for metric in found)
                values, most = [metric.value for metric in found], 1.0 if share else math.inf
                cells[name] = of_groups(values, found[0].n, found[0].seed, least=least, most=most)
        return cells


def read_sweep(folder: Path) -> Found:
    """Read a sweep's index and the state of its points."""
    index = read_index(folder / INDEX)
    rows = [_row(folder, tuple(p["labels"][axis] for axis in index["axes"]), p["folder"]) for p in index["points"]]
    goals = {name: float(goal) for name, goal in index["goals"].items()}
    return Found(index["axes"], goals, rows, index.get("command", ""))


def without(labels: tuple[T, ...], position: int | None) -> tuple[T, ...]:
    """The labels without the one at a position."""
    return labels if position is None else labels[:position] + labels[position + 1 :]


def short(axes: Iterable[str]) -> list[str]:
    """Last parts of the axes' names where they differ, whole names elsewhere."""
    axes = list(axes)
    last = [axis.rsplit(".", 1)[-1] for axis in axes]
    return [s if last.count(s) == 1 else axis for s, axis in zip(last, axes, strict=True)]


def _row(folder: Path, labels: tuple[Label, ...], place: str) -> Row:
    point = folder / place
    if (point / "result.json").exists():
        result, metrics = read_result(point / "result.json", "metrics", "seconds")
        return Row(labels, place, "done", "", result["seconds"], metrics)
    if (point / ERROR).exists():
        return Row(labels, place, "failed", (point / ERROR).read_text().strip(), None, {})
    return Row(labels, place, "missing", "", None, {})


def _ends(metric: Metric) -> tuple[float, float]:
    """The interval; of a value without one, itself."""
    return (metric.value, metric.value) if math.isnan(metric.low) else (metric.low, metric.high)
