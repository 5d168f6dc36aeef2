"""What a sweep found, as sweep.csv and as a table on the terminal."""

import csv
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdm.errors import InputError
from rdm.escape import csv_cell, printable
from rdm.files.store import write_text
from rdm.matching.metric import Metric
from rdm.reports.found import Found, Line, read_sweep
from rdm.terminal import Best, print_table, say

WIDEST = 30  # letters of a column


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


def print_summary(folder: Path, metrics: Sequence[str] | None = None) -> None:
    """Print a table of metrics by lines of the summary, or of lines by metrics where that is shorter.

    `metrics` chooses some by name, or by the part before "/" for one under every encoder.

    Raises:
        InputError: no metric of a name, which lists those that there are.
    """
    found = read_sweep(folder)
    names, lines = _chosen(found.own_metrics, metrics), found.summary()
    marks = {name: found.marks(lines, name) for name in names}
    columns = [
        (printable(line.name).replace(", ", "\n"), [_text(line, k, name, marks) for name in names])
        for k, line in enumerate(lines)
        if line.cells
    ]
    columns += [
        (printable(each), [_shown(cells.get(name)) for name in names]) for each, cells in found.baselines().items()
    ]
    if names:
        _print(names, columns)
    for line in lines:
        if len(line.done) < len(line.rows):
            say(f"{line.name}: {_status(line)}", file=sys.stdout)
    if names:
        for each in note(found, star="*", tie="≈").split("\n"):
            say(each, file=sys.stdout)


def note(found: Found, *, star: str, tie: str) -> str:
    """What the marks and the brackets of a summary's table are, a line each."""
    seeds = ", of several seeds Student's of their mean" if found.seed is not None else ""
    marks = f"{star}: the best; {tie}: its interval overlaps the best's; without a mark: worse, or none is told apart"
    return f"{marks}\nbrackets: 95 % intervals{seeds}"


def _chosen(names: list[str], asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return names
    if strange := [each for each in asked if not any(each in (name, name.split("/")[0]) for name in names)]:
        raise InputError(f"--metrics: expected some of {', '.join(names) or 'none'}; got {strange[0]!r}")
    return [name for name in names if name in asked or name.split("/")[0] in asked]


def _shown(metric: Metric | None) -> str:
    return "-" if metric is None else str(metric)


def _text(line: Line, k: int, name: str, marks: dict[str, dict[int, str]]) -> str:
    mark, text = marks[name].get(k), _shown(line.cells.get(name))
    return Best(f"{text}*") if mark == "best" else f"{text} ≈" if mark else text


def _status(line: Line) -> str:
    error = next((row.error for row in line.rows if row.error), "")
    return f"{len(line.done)} of {len(line.rows)} done" + (f"; failed: {error}" if error else "")


def _print(names: Sequence[str], columns: Sequence[tuple[str, list[str]]]) -> None:
    """Blocks of a table, metrics beneath each other or beside each other, whichever takes fewer lines."""
    width = shutil.get_terminal_size((110, 24)).columns
    upright = (
        ["metric", *(head for head, _ in columns)],
        [[n, *(c[k] for _, c in columns)] for k, n in enumerate(names)],
    )
    flat = [[head.replace("\n", ", "), *cells] for head, cells in columns]
    across = ["", *(printable(name).replace("/", "/\n") for name in names)], flat
    shapes = [_blocks(*shape, width) for shape in (upright, across)]
    for heads, rows in min(shapes, key=lambda blocks: sum(len(rows) + 3 for _, rows in blocks)):
        print_table(heads, rows, caption="", unbroken=range(1, len(heads)), width=width)


def _blocks(heads: list[str], rows: list[list[str]], width: int) -> list[tuple[list[str], list[list[str]]]]:
    """Columns in as many blocks as a width needs; each begins with the first column."""
    sizes = [
        3 + max(min(WIDEST, max(map(len, head.split("\n")))), *(len(row[k]) for row in rows))
        for k, head in enumerate(heads)
    ]
    blocks, free = list[list[int]](), 0
    for k in range(1, len(heads)):
        if not blocks or sizes[k] > free:
            blocks.append([])
            free = width - min(sizes[0], width // 3)
        blocks[-1].append(k)
        free -= sizes[k]
    return [([heads[k] for k in (0, *block)], [[row[k] for k in (0, *block)] for row in rows]) for block in blocks]
