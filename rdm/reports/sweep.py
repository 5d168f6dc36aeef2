"""What a sweep found: sweep.csv, a table on the terminal, report.html with tables, panels and samples.

Everything is read from the sweep's folder: the index that the sweep wrote, and each point's result or error.
"""

import base64
import csv
import html
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rdm.escape import csv_cell, drawn
from rdm.files.records import read_index
from rdm.files.store import write_bytes, write_text
from rdm.judging.evaluation import Metric
from rdm.reports.gallery import Panel, gallery, newest_picture
from rdm.reports.run import blank_figure, read_result, svg, write_page
from rdm.terminal import Best, print_table

INDEX, ERROR = "sweep.json", "error.txt"
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


class Cell(NamedTuple):
    """A metric of one line of the summary: mean over seeds and their standard deviation, or value and interval."""

    value: float
    spread: float


class Line(NamedTuple):
    """One line of the summary: the points that differ in nothing but the seed."""

    labels: tuple[Label, ...]  # of the axes other than the seed
    cells: dict[str, Cell]
    seeds: int  # points done
    missing: int  # points failed or not run
    error: str


@dataclass(frozen=True)
class Found:
    """A sweep's axes and rows."""

    axes: list[str]
    goals: dict[str, float]
    rows: list[Row]

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

    def summary(self) -> list[Line]:
        """Points that differ in the seed alone become one line."""
        groups: dict[tuple[Label, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(_without(row.labels, self.seed), []).append(row)
        return [self._line(labels, rows) for labels, rows in groups.items()]

    def best(self, lines: Iterable[Line], metric: str) -> float | None:
        """The value nearest to what the metric strives for; None where there is no choice."""
        values = [line.cells[metric].value for line in lines if metric in line.cells]
        goal = self.goals.get(metric, -math.inf)
        if len(set(values)) < 2:
            return None
        return max(values) if goal == math.inf else min(values, key=lambda v: v if goal == -math.inf else abs(v - goal))

    def _line(self, labels: tuple[Label, ...], rows: list[Row]) -> Line:
        done = [row for row in rows if row.status == "done"]
        cells = {}
        for name in self.own_metrics:
            values = [row.metrics[name] for row in done if name in row.metrics]
            if len(values) == 1:
                cells[name] = Cell(values[0].value, (values[0].high - values[0].low) / 2)
            elif values:
                numbers = [metric.value for metric in values]
                cells[name] = Cell(statistics.fmean(numbers), statistics.stdev(numbers))
        error = next((row.error for row in rows if row.error), "")
        return Line(labels, cells, len(done), len(rows) - len(done), error)


def read_sweep(folder: Path) -> Found:
    """Read a sweep's index and the state of its points."""
    index = read_index(folder / INDEX)
    rows = [_row(folder, tuple(p["labels"][axis] for axis in index["axes"]), p["folder"]) for p in index["points"]]
    return Found(index["axes"], {name: float(goal) for name, goal in index["goals"].items()}, rows)


def write_csv(folder: Path) -> Path:
    """Write sweep.csv, one row a point: axes, status, seconds, every metric with its interval; returns its path."""
    found = read_sweep(folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [part for name in found.metrics for part in (name, f"{name} low", f"{name} high")]
    writer.writerow(map(csv_cell, [*found.axes, "status", "seconds", *columns, "folder", "error"]))
    for row in found.rows:
        numbers: list[Any] = []
        for name in found.metrics:
            metric = row.metrics.get(name)
            numbers += ["", "", ""] if metric is None else [metric.value, metric.low, metric.high]
        seconds = "" if row.seconds is None else row.seconds
        writer.writerow(map(csv_cell, [*row.labels, row.status, seconds, *numbers, row.folder, row.error]))
    write_text(folder / "sweep.csv", text.getvalue())
    return folder / "sweep.csv"


def print_summary(folder: Path) -> None:
    """Print the summary, the best of every column in bold with a star."""
    found = read_sweep(folder)
    lines = found.summary()
    best = {name: found.best(lines, name) for name in found.own_metrics}
    rows = []
    for line in lines:
        cells = [_text(line.cells.get(name)) for name in found.own_metrics]
        marked = [
            Best(f"{text}*") if name in line.cells and line.cells[name].value == best[name] else text
            for name, text in zip(found.own_metrics, cells, strict=True)
        ]
        rows.append([*map(str, line.labels), *marked, _done(line)])
    heads = ["done" if head == "points" else head for head in _heads(found)]
    print_table(heads, rows, caption=_note(found, star=True))


def write_sweep_report(folder: Path) -> Path:
    """Draw report.html of a sweep, and samples.png where its points draw pictures; returns the report's path.

    Raises:
        InputError: matplotlib is not installed.
    """
    found = read_sweep(folder)
    done = sum(row.status == "done" for row in found.rows)
    body = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f'<p class="note">{done} of {len(found.rows)} points done</p>',
        "<h2>Results</h2>",
        _summary_table(found),
        "<h2>Panels</h2>",
        _panels(found),
        *_samples(folder, found),
        "<h2>Points</h2>",
        _point_table(found),
    ]
    return write_page(folder, body)


def _row(folder: Path, labels: tuple[Label, ...], place: str) -> Row:
    point = folder / place
    if (point / "result.json").exists():
        result, metrics = read_result(point / "result.json", "metrics", "seconds")
        return Row(labels, place, "done", "", result["seconds"], metrics)
    if (point / ERROR).exists():
        return Row(labels, place, "failed", (point / ERROR).read_text().strip(), None, {})
    return Row(labels, place, "missing", "", None, {})


def _without(labels: tuple[T, ...], position: int | None) -> tuple[T, ...]:
    return labels if position is None else labels[:position] + labels[position + 1 :]


def _short(axes: Iterable[str]) -> list[str]:
    """Last parts of the axes' names where they differ, whole names elsewhere."""
    axes = list(axes)
    short = [axis.rsplit(".", 1)[-1] for axis in axes]
    return [s if short.count(s) == 1 else axis for s, axis in zip(short, axes, strict=True)]


def _heads(found: Found) -> list[str]:
    return [*_short(_without(tuple(found.axes), found.seed)), *found.own_metrics, "points"]


def _text(cell: Cell | None) -> str:
    return "-" if cell is None else f"{cell.value:.3g} ± {cell.spread:.2g}"


def _status(line: Line) -> str:
    return _done(line) + (f" done; failed: {line.error}" if line.error else " done")


def _done(line: Line) -> str:
    return f"{line.seeds} of {line.seeds + line.missing}"


def _note(found: Found, *, star: bool) -> str:
    spread = "mean ± standard deviation over seeds" if found.seed is not None else "± half a 95 % interval"
    return f"{'*' if star else 'bold:'} the best of its column; {spread}"


def _table(heads: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _summary_table(found: Found) -> str:
    lines, rows = found.summary(), []
    best = {name: found.best(lines, name) for name in found.own_metrics}
    for line in lines:
        cells = [f"<td>{html.escape(str(label))}</td>" for label in line.labels]
        for name in found.own_metrics:
            cell = line.cells.get(name)
            mark = cell is not None and cell.value == best[name]
            cells.append(f'<td class="best"><b>{_text(cell)}</b></td>' if mark else f"<td>{_text(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}<td>{html.escape(_status(line))}</td></tr>")
    return _table(_heads(found), rows) + f'<p class="note">{_note(found, star=False)}</p>'


def _point_table(found: Found) -> str:
    rows = []
    for row in found.rows:
        metrics = [row.metrics.get(name) for name in found.own_metrics]
        values = ["-" if m is None else f"{m.value:.4g} [{m.low:.3g}, {m.high:.3g}]" for m in metrics]
        seconds = "-" if row.seconds is None else f"{row.seconds:.0f}"
        cells = [*map(str, row.labels), *values, seconds, row.folder, row.error or row.status]
        rows.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    return _table([*_short(found.axes), *found.own_metrics, "seconds", "folder", "status"], rows)


def _panels(found: Found) -> str:
    """A panel a metric, against the axis of numbers with most values; a line for each value of the other axes."""
    axes, lines = list(_without(tuple(found.axes), found.seed)), [line for line in found.summary() if line.cells]
    if not lines or not axes:
        return '<p class="note">Nothing to draw.</p>'
    across = _horizontal(lines, len(axes))
    names, columns = found.own_metrics, min(3, len(found.own_metrics))
    figure = blank_figure(4.4 * columns, 3.2 * -(-len(names) // columns))
    panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        curves: dict[tuple[Label, ...], list[Line]] = {}
        for line in lines:
            if name in line.cells:
                curves.setdefault(_without(line.labels, across), []).append(line)
        for others, members in curves.items():
            x = [v if isinstance(v := line.labels[across], int | float) else drawn(v) for line in members]
            cells = [line.cells[name] for line in members]
            label = drawn(", ".join(map(str, others)))
            values, spreads = [cell.value for cell in cells], [cell.spread for cell in cells]
            panel.errorbar(x, values, spreads, marker="o", markersize=3, capsize=2, linewidth=1, label=label)
        numbers = [line.labels[across] for line in lines]
        if all(isinstance(v, int | float) and v > 0 for v in numbers) and max(numbers) >= 8 * min(numbers):  # type: ignore[operator]
            panel.set_xscale("log")
            panel.set_xticks(sorted(set(numbers)), [f"{v:g}" for v in sorted(set(numbers))])  # type: ignore[arg-type]
            panel.minorticks_off()
        panel.set_title(drawn(name), fontsize=10)
        panel.set_xlabel(drawn(_short(axes)[across]))
        panel.grid(alpha=0.3)
        if len(axes) > 1:
            panel.legend(fontsize=8)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    return svg(figure) + f'<p class="note">{_note(found, star=False).split("; ")[1]}</p>'


def _samples(folder: Path, found: Found) -> list[str]:
    """The gallery of what the points drew, of the first seed done; also written as samples.png."""
    panels = []
    for row in found.rows:
        picture = newest_picture(folder / row.folder) if row.status == "done" else None
        if picture is not None:
            *others, last = map(str, _without(row.labels, found.seed) or ("",))
            panels.append(Panel(", ".join(others), last, picture))
    if not panels:
        return []
    png = gallery(panels)
    write_bytes(folder / "samples.png", png)
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return ["<h2>Samples</h2>", f'<img alt="samples of every point" style="max-width:100%" src="{source}">']


def _horizontal(lines: list[Line], axes: int) -> int:
    """Position of the axis of numbers with most values; without one, of the axis with most values."""

    def rank(position: int) -> tuple[bool, int]:
        values = {line.labels[position] for line in lines}
        return all(isinstance(value, int | float) for value in values) and len(values) > 1, len(values)

    return max(range(axes), key=rank)
