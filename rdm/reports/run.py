"""report.html of a run: results, samples, curves, where it comes from and configuration in one self-contained file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdm.files.pictures import compared_pictures
from rdm.files.records import read_index, read_log, read_sessions
from rdm.files.schema import anything, expect, mapped, number, record, text
from rdm.files.store import read_json, read_text
from rdm.judging.against import REAL
from rdm.judging.evaluation import THIS
from rdm.judging.measures import is_ratio
from rdm.matching.metric import Metric
from rdm.reports import page, plot
from rdm.reports.page import Cell

INDEX = "sweep.json"
AGAIN = "train or evaluate again"
WHOLE = number(int, low=-(2**63), high=2**64)  # seeds among them
ANY = number(finite=False)
FIELDS = {
    "metrics": mapped(record({"value": ANY, "low": ANY, "high": ANY, "n": WHOLE, "seed": WHOLE})),
    "steps": WHOLE,
    "seconds": number(),
    "seed": WHOLE,
    "versions": mapped(text()),
}
POINTS = 4000  # of all curves of a drawing
KEYS = (
    "Dots with 95 % intervals: filled the trained generator, hollow what it is compared with. Green: the interval of "
    "fresh real data.\n"
)
RATIOS = (
    "Distances are ratios: generated items to the reference, over a fresh real split to the reference, so that 1 "
    "(dashed) is what real data scores and less is better.\n"
)
MONITORS = (
    "accuracy: share of items that the judge gives the class they were asked for. spread: distance between items of "
    "one class, real data 1, collapse 0. copies: share nearer to a training item than 99 % of fresh real ones are, "
    "expected 0.01.\n"
)


def write_report(folder: Path) -> Path:
    """Draw the report of a run into its folder, one that has not finished as far as it is; returns its path.

    Raises:
        InputError: no run there.
    """
    log, configuration = read_log(folder / "log.jsonl"), read_text(folder / "config.gin")
    result, metrics = dict[str, Any](), dict[str, Metric]()
    if (folder / "result.json").exists():
        result, metrics = read_result(folder / "result.json", *FIELDS)
    sections = {"Results": _results(metrics)} if metrics else {}
    sections |= {
        "Samples": _samples(folder, metrics),
        "Training": training({"": log}),
        "Where it comes from": provenance(folder, result) + page.folded("Configuration", configuration),
    }
    title, lead = _titled(folder)
    return page.write_page(folder, title, [*lead, page.escaped(_summary(result) if result else _so_far(log))], sections)


def read_result(path: Path, *needed: str) -> tuple[dict[str, Any], dict[str, Metric]]:
    """What a run's result.json says, each field of the form that a run writes, and its metrics.

    Raises:
        CorruptFileError: a field that is needed is missing, or one is of another form.
    """
    result = read_json(path)
    expect(result, mapped(anything), path, AGAIN)
    optional = {name: check for name, check in FIELDS.items() if name not in needed}
    known = {name: value for name, value in result.items() if name in FIELDS}
    expect(known, record({name: FIELDS[name] for name in needed}, optional), path, AGAIN)
    return result, {name: Metric(**value) for name, value in known.get("metrics", {}).items()}


def training(logs: Mapping[str, Sequence[Mapping[str, float]]], colours: Mapping[str, str] | None = None) -> str:
    """What runs logged over their steps, a drawing a number; all runs, or the parts of a battery, in one.

    `colours` says which runs share one, by a name for the legend; by default each has its own.
    """
    numbers: dict[str, dict[str, list[tuple[float, float]]]] = {}  # by what is measured, then by whose it is
    for run, log in logs.items():
        for name in dict.fromkeys(name for row in log for name in row if name not in ("step", "seconds")):
            what, _, member = name.partition("/")
            if colours is not None:
                what, member = name, run
            points = [(row["step"], row[name]) for row in log if name in row and math.isfinite(row[name])]
            if points:
                numbers.setdefault(what, {})[member] = points
    if not numbers:
        return page.note("Nothing was logged.")
    flat = {
        what: sorted({y for points in lines.values() for _, y in points})
        for what, lines in numbers.items()
        if all(len({y for _, y in points}) == 1 for points in lines.values())
    }
    labels = dict.fromkeys(label for lines in numbers.values() for label in lines if label)
    named = {label: (colours or {}).get(label, label) for label in labels}
    order = list(dict.fromkeys((colours or named).values()))
    classes = {"": "c0"} | {label: f"c{order.index(name) % 8}" for label, name in named.items()}
    drawn = "".join(_curves(what, lines, classes) for what, lines in numbers.items() if what not in flat)
    said = {"Logged once": list[str](), "The same at every step": list[str]()}
    for what, values in flat.items():
        once = all(len(points) == 1 for points in numbers[what].values())
        part = f"{what.replace('_', ' ')} {' or '.join(f'{y:g}' for y in values)}"
        said["Logged once" if once else "The same at every step"].append(part)
    notes = "".join(page.note(f"{when}: {', '.join(parts)}.") for when, parts in said.items() if parts)
    return page.legend(order) + f'<div class="panels">{drawn}</div>' + notes


def provenance(folder: Path, result: Mapping[str, Any]) -> str:
    """Commands, times, device, versions and seed of a run."""
    sessions = read_sessions(folder)
    versions = [s["versions"] for s in sessions] or [result.get("versions", {})]
    said = list(dict.fromkeys(", ".join(f"{name} {value}" for name, value in each.items()) for each in versions))
    entries = [
        ("command", [f"<code>{page.escaped(s['command'])}</code>" for s in sessions]),
        ("started", [page.escaped(s["started"]) for s in sessions]),
        ("device", [page.escaped(name) for name in dict.fromkeys(s["device"] for s in sessions)]),
        ("versions", [page.escaped(line) for line in said if line]),
    ]
    if result:
        entries += [("seed", [str(result["seed"])]), ("time", [f"{result['seconds']:,.0f} s with evaluation"])]
    return page.listed((name, lines) for name, lines in entries if lines)


def labelled(labels: Mapping[str, object]) -> str:
    """The values of a point of a sweep in words: "objective = frechet, seed 1"."""
    parts = {axis.rsplit(".", 1)[-1]: value for axis, value in labels.items()}
    return ", ".join(f"seed {value}" if name == "seed" else f"{name} = {value}" for name, value in parts.items())


def samples_of(folder: Path) -> dict[str, Path]:
    """Pictures of a run by title: those of its evaluation, else first, middle and last of training."""
    found = dict(compared_pictures(folder / "samples"))
    if not found:
        steps = sorted((folder / "samples").glob("[0-9]*.png"))
        chosen = sorted({0, len(steps) // 2, len(steps) - 1}) if steps else []
        found = {f"step {int(steps[k].stem)}": steps[k] for k in chosen}
    return found


def _titled(folder: Path) -> tuple[str, list[str]]:
    """Name of a run, of a sweep's point its values; and the lines beneath it."""
    sweep = folder.resolve().parent.parent
    if (sweep / INDEX).is_file():
        for point in read_index(sweep / INDEX)["points"]:
            if (sweep / point["folder"]).resolve() == folder.resolve():
                name = page.escaped(folder.resolve().name)
                return labelled(point["labels"]), [f"{name}, a point of {page.link(sweep.name, '../../report.html')}"]
    return folder.resolve().name, []


def _summary(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {result['versions'].get(name, '?')}" for name in ("rdm", "torch"))
    return f"{result['steps']} steps in {result['seconds']:.0f} s, seed {result['seed']}, {versions}"


def _so_far(log: Sequence[Mapping[str, float]]) -> str:
    """Of a run without a result."""
    if not log:
        return "not finished; nothing is logged yet"
    return f"not finished; {log[-1]['step']:.0f} steps in {log[-1].get('seconds', 0.0):.0f} s are logged"


def _results(metrics: Mapping[str, Metric]) -> str:
    compared = [name for name in dict.fromkeys(key.split(": ")[0] for key in metrics if ": " in key) if name != REAL]
    columns = ["", *compared, *([REAL] if any(key.startswith(f"{REAL}: ") for key in metrics) else [])]
    bare = [key for key in metrics if ": " not in key]
    families = dict.fromkeys(key.partition("/")[0] for key in bare)
    drawn = "".join(_dots(family, metrics, columns) for family in families)
    rows = []
    for name in bare:
        found = [metrics.get(f"{column}: {name}" if column else name) for column in columns]
        rows.append(([Cell(name), *map(cell, found)], ""))
    said = (KEYS + RATIOS if REAL in columns else "Dots with 95 % intervals. ") + (MONITORS if "spread" in bare else "")
    alike = "The same noise in every column. " if compared else ""
    counts = sorted({metric.n for metric in metrics.values()})
    said += f"{alike}n = {' or '.join(f'{n:,}' for n in counts)} items each."
    table = page.table("Value [95 % interval]", ["metric", *(column or THIS for column in columns)], rows)
    return f'<div class="panels">{drawn}</div>{page.note(said)}{table}'


def cell(metric: Metric | None) -> Cell:
    """A value, its interval beneath."""
    if metric is None:
        return Cell("-", "")
    value, _, interval = str(metric).partition(" ")
    return Cell(value, metric.value, interval)


def _dots(family: str, metrics: Mapping[str, Metric], columns: Sequence[str]) -> str:
    """One metric under every encoder, of this run and what it is compared with."""
    names = [key for key in metrics if ": " not in key and key.partition("/")[0] == family]
    groups = []
    for name in names:
        found = {column: metrics.get(f"{column}: {name}" if column else name) for column in columns}
        marks = [
            plot.Mark(column or THIS, metric, (), "base" if column else "c0", bool(column))
            for column, metric in found.items()
            if metric is not None
        ]
        groups.append(plot.Group(name.partition("/")[2], marks, found.get(REAL)))
    if all(len(group.marks) == 1 for group in groups) and any(group.name for group in groups):
        marks = [group.marks[0]._replace(label=group.name) for group in groups]
        groups = [plot.Group("", marks)]
    relative = is_relative(family, metrics)
    return plot.dots(family, groups, log=relative, one=relative)


def is_relative(name: str, metrics: Mapping[str, Metric]) -> bool:
    """Whether a metric, or one under every encoder, is a ratio to fresh real data: 1 is what that scores."""
    real = [v.value for key, v in metrics.items() if key == f"{REAL}: {name}" or key.startswith(f"{REAL}: {name}/")]
    return is_ratio(name.partition("/")[0]) or (bool(real) and all(value == 1 for value in real))


def _samples(folder: Path, metrics: Mapping[str, Metric]) -> str:
    found = samples_of(folder)
    if not found:
        return page.note("This run draws no samples.")
    note = "A column is a class; the same noise in every picture but the real one."
    figures = "".join(page.pictured(title, path) for title, path in found.items())
    return f'<div class="grids">{figures}</div>' + (page.note(note) if any(": " in name for name in metrics) else "")


def _curves(what: str, lines: Mapping[str, Sequence[tuple[float, float]]], classes: Mapping[str, str]) -> str:
    values = [y for points in lines.values() for _, y in points]
    log = min(values) > 0 and max(values) >= 5 * min(values)
    most = max(30, POINTS // len(lines))
    drawn = [plot.Curve(label, plot.thinned(points, most), classes[label]) for label, points in lines.items()]
    title = what.replace("_", " ") + (", logarithmic" if log else "")
    return plot.curves(title, "step", drawn, log=log)
