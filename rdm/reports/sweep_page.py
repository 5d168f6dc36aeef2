"""report.html of a sweep: distances of all points, their samples, their curves over each other, links to each."""

from collections.abc import Sequence
from pathlib import Path

from rdm.files.records import read_log, read_sessions
from rdm.files.store import read_text, write_bytes
from rdm.judging.against import REAL
from rdm.matching.metric import Metric
from rdm.reports import page, plot
from rdm.reports.found import SEED, Found, Label, Line, Row, read_sweep, short, without
from rdm.reports.gallery import Panel, gallery
from rdm.reports.page import Cell
from rdm.reports.run import KEYS, MONITORS, RATIOS, cell, is_relative, samples_of, training
from rdm.reports.sweep import note

COLOURS = 8

Marked = Sequence[tuple[Line, plot.Mark]]


def write_sweep_report(folder: Path) -> Path:
    """Draw report.html of a sweep, and samples.png where its points draw pictures; returns the report's path."""
    found = read_sweep(folder)
    lines = found.summary()
    done = sum(row.status == "done" for row in found.rows)
    lead = [page.escaped(f"{done} of {len(found.rows)} points done; axes: {', '.join(short(found.axes)) or 'none'}")]
    drawn = any(line.cells for line in lines)
    sections = {
        "Results": _results(found, lines) if drawn else page.note("Nothing to draw: no point has metrics."),
        "Samples": _samples(folder, found, lines),
        "Training": _training(folder, found, lines),
        "Points": _points(folder, found),
        "Where it comes from": _provenance(folder, found),
    }
    return page.write_page(folder, folder.resolve().name, lead, sections)


def _results(found: Found, lines: Sequence[Line]) -> str:
    names, baselines = found.own_metrics, found.baselines()
    across = _numbers(lines, len(found.shown_axes))
    kinds = list(dict.fromkeys(_kind(line, lines, across) for line in lines))
    drawings = []
    colours = [kinds.index(_kind(line, lines, across)) for line in lines]
    for name in names:
        pairs = zip(lines, colours, strict=True)
        marks = [(line, _mark(line, name, colour)) for line, colour in pairs if name in line.cells]
        others = {each: cells[name] for each, cells in baselines.items() if name in cells}
        relative = any(is_relative(name, row.metrics) for row in found.rows)
        if across is None:
            groups = _groups(found.shown_axes, marks, others)
            drawings.append(plot.dots(name, groups, log=relative, one=relative))
        else:
            drawings.append(_over(name, found.shown_axes[across], across, marks, others, log=relative))
    said = (KEYS + RATIOS if baselines else "Dots with 95 % intervals. ") + (MONITORS if "spread" in names else "")
    said += "Faint dots: single seeds. " if found.seed is not None and across is None else ""
    said += "An arrow: the interval goes on. A click on a column's head sorts."
    panels = f'<div class="panels">{"".join(drawings)}</div>'
    return (page.legend(kinds) if across is not None else "") + panels + page.note(said) + _table(found, lines)


def _table(found: Found, lines: Sequence[Line]) -> str:
    names, several = found.own_metrics, any(len(line.rows) > 1 for line in lines)
    axes, rows = found.shown_axes or ["point"], list[tuple[list[Cell], str]]()
    marks = {name: found.marks(lines, name) for name in names}
    for k, line in enumerate(lines):
        labels = [Cell(str(label), label) for label in line.labels] or [Cell(line.name)]
        if len(line.rows) == 1 and line.done:
            labels[0] = labels[0]._replace(place=f"{line.done[0].folder}/report.html")
        cells = [_marked(cell(line.cells.get(name)), marks[name].get(k, "")) for name in names]
        count = [Cell(f"{len(line.done)} of {len(line.rows)}", len(line.done))] if several else []
        rows.append(([*labels, *cells, *count], ""))
    for each, metrics in found.baselines().items():
        blank = [Cell("", "")] * (len(axes) - 1)
        count = [Cell("", "")] if several else []
        rows.append(([Cell(each), *blank, *(cell(metrics.get(name)) for name in names), *count], "base"))
    said = page.note(note(found, star="bold", tie="≈"))
    return said + page.table("Value [95 % interval]", [*axes, *names, *["points done"] * several], rows)


def _marked(shown: Cell, mark: str) -> Cell:
    return shown._replace(text=f"≈ {shown.text}") if mark == "tie" else shown._replace(kind=mark)


def _mark(line: Line, name: str, kind: int) -> plot.Mark:
    seeds = [row.metrics[name].value for row in line.done if name in row.metrics]
    return plot.Mark("", line.cells[name], seeds if len(seeds) > 1 else (), f"c{kind % COLOURS}")


def _kind(line: Line, lines: Sequence[Line], across: int | None) -> str:
    """Whose colour a line has: of its curve where an axis is one of numbers; else its own where these are enough."""
    if across is not None:
        return ", ".join(map(str, without(line.labels, across)))
    return line.name if len(lines) <= COLOURS else str(line.labels[0])


def _groups(axes: Sequence[str], marks: Marked, others: dict[str, Metric]) -> list[plot.Group]:
    """Lines under the values of all axes but the last, then what they are compared with."""
    groups: dict[str, list[plot.Mark]] = {}
    for line, mark in marks:
        *before, last = line.labels or (line.name,)
        label = last if isinstance(last, str) else f"{axes[-1]} {last}"
        groups.setdefault(", ".join(map(str, before)), []).append(mark._replace(label=label))
    compared = [plot.Mark(each, metric, (), "base", True) for each, metric in others.items()]
    found = [*groups.items(), *([("", compared)] if compared else [])]
    return [plot.Group(head, members, others.get(REAL)) for head, members in found]


def _over(name: str, axis: str, across: int, marks: Marked, others: dict[str, Metric], *, log: bool) -> str:
    """A metric over an axis of numbers, a curve for each value of the other axes."""
    curves: dict[str, list[tuple[float, plot.Mark]]] = {}
    for line, mark in marks:
        curves.setdefault(_kind(line, [], across), []).append((float(line.labels[across]), mark))
    at = sorted({x for members in curves.values() for x, _ in members})
    drawn = [
        plot.Curve(each, [(at[0], metric.value), (at[-1], metric.value)], "base") for each, metric in others.items()
    ]
    for kind, members in curves.items():
        members.sort(key=lambda pair: pair[0])
        points = [(x, mark.metric.value) for x, mark in members]
        spans = [(mark.metric.low, mark.metric.high) for _, mark in members]
        drawn.append(plot.Curve(kind, points, members[0][1].colour, spans))
    return plot.curves(name, axis, drawn, log=log, at=at, real=others.get(REAL))


def _numbers(lines: Sequence[Line], axes: int) -> int | None:
    """Position of the axis of numbers with most values, three at least."""
    found: dict[int, int] = {}
    for position in range(axes):
        values: set[Label] = {line.labels[position] for line in lines}
        if len(values) > 2 and all(isinstance(value, int | float) for value in values):
            found[position] = len(values)
    return max(found, key=lambda k: found[k], default=None)


def _samples(folder: Path, found: Found, lines: Sequence[Line]) -> str:
    """Real items once, then the newest picture of the first seed of every line."""
    figures, shown, panels = list[str](), set[str](), list[Panel]()
    for line in lines:
        for row in line.done:
            pictures = samples_of(folder / row.folder)
            if not pictures:
                continue
            *compared, (_, newest) = pictures.items()
            for title, path in compared:
                if title == REAL and title not in shown:
                    figures.insert(0, page.pictured(title, path))
                    shown.add(title)
            *others, last = map(str, line.labels or ("",))
            panels.append(Panel(", ".join(others), last, newest))
            figures.append(
                page.pictured(line.name, newest, beside=_seed(found, row), place=f"{row.folder}/report.html")
            )
            break
    if not panels:
        return page.note("The points draw no samples.")
    write_bytes(folder / "samples.png", gallery(panels))
    return f'<div class="grids">{"".join(figures)}</div>' + page.note(
        "All in one picture: samples.png beside this page."
    )


def _seed(found: Found, row: Row) -> str:
    return "" if found.seed is None else f"seed {row.labels[found.seed]}"


def _training(folder: Path, found: Found, lines: Sequence[Line]) -> str:
    logs, kinds = {}, {}
    across = _numbers(lines, len(found.shown_axes))
    for line in lines:
        for row in line.rows:
            label = ", ".join(filter(None, (line.name, _seed(found, row))))
            kinds[label] = _kind(line, lines, across)
            if (folder / row.folder / "log.jsonl").is_file():
                logs[label] = read_log(folder / row.folder / "log.jsonl")
    return training(logs, kinds)


def _points(folder: Path, found: Found) -> str:
    rows = []
    for row in found.rows:
        place = f"{row.folder}/report.html"
        there = (folder / place).is_file()
        labels = [Cell(str(label), label) for label in row.labels] or [Cell("the only one")]
        seconds = Cell("-", "") if row.seconds is None else Cell(f"{row.seconds:,.0f}", row.seconds)
        name = row.folder.rsplit("/", 1)[-1]
        rows.append(
            (
                [
                    *labels,
                    seconds,
                    Cell(name, place=place if there else ""),
                    Cell(row.error or row.status, kind="text"),
                ],
                "",
            )
        )
    heads = [*(short(found.axes) or ["point"]), "seconds", "report", "status"]
    return page.table("Every point", heads, rows)


def _provenance(folder: Path, found: Found) -> str:
    sessions = [session for row in found.rows for session in read_sessions(folder / row.folder)]
    versions = [", ".join(f"{name} {value}" for name, value in s["versions"].items()) for s in sessions]
    started = sorted(session["started"] for session in sessions)
    at = found.axes.index(SEED) if SEED in found.axes else None
    seeds = [] if at is None else [page.escaped(seed) for seed in dict.fromkeys(row.labels[at] for row in found.rows)]
    seconds = sum(row.seconds or 0 for row in found.rows)
    entries = [
        ("command", [f"<code>{page.escaped(found.command)}</code>"] if found.command else []),
        ("started", [page.escaped(" to ".join(dict.fromkeys((started[0], started[-1]))))] if started else []),
        ("device", [page.escaped(name) for name in dict.fromkeys(s["device"] for s in sessions)]),
        ("versions", [page.escaped(line) for line in dict.fromkeys(versions)]),
        ("seeds", [", ".join(seeds)] if seeds else []),
        ("time", [f"{seconds:,.0f} s of all points"]),
        ("numbers", [page.link("sweep.csv", "sweep.csv")] if (folder / "sweep.csv").is_file() else []),
    ]
    listed = page.listed((name, lines) for name, lines in entries if lines)
    return listed + page.folded("Configuration that all points share", _shared(folder, found.rows))


def _shared(folder: Path, rows: Sequence[Row]) -> str:
    """The lines of the points' configurations that are the same in all."""
    places = [folder / row.folder / "config.gin" for row in rows]
    first, *others = [read_text(place).splitlines() for place in places if place.is_file()] or [[]]
    return "\n".join(line for line in first if all(line in other for other in others))
