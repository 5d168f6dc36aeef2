"""report.html of a run: curves, sample grids, table and configuration in one self-contained file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdm.errors import InputError
from rdm.escape import drawn
from rdm.files.pictures import compared_pictures
from rdm.files.records import read_log
from rdm.files.schema import anything, expect, mapped, number, record, text
from rdm.files.store import read_json, read_text, write_text
from rdm.judging.evaluation import table
from rdm.matching.metric import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } .note { color: #5a5a66 }
table { border-collapse: collapse } td, th { padding: .25rem .8rem; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } thead th { border-bottom: 2px solid #1b1b1f }
tbody tr:nth-child(odd) { background: #f4f4f8 } td:last-child { font-weight: 600 }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1.2rem }
figure { margin: 0 } figcaption { font-weight: 600 } figure img { width: 100%; image-rendering: pixelated }
svg { max-width: 100%; height: auto } pre { background: #f4f4f8; padding: 1rem; overflow-x: auto; font-size: 13px }
.scroll { overflow-x: auto }
"""


def write_report(folder: Path) -> Path:
    """Draw the report of a run into its folder, one that has not finished as far as it is; returns its path.

    Raises:
        InputError: no run there, or matplotlib is not installed.
    """
    log, configuration = read_log(folder / "log.jsonl"), read_text(folder / "config.gin")
    summary, metrics = _so_far(log), dict[str, Metric]()
    if (folder / "result.json").exists():
        result, metrics = read_result(folder / "result.json", *FIELDS)
        summary = _summary(result)
    body = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f'<p class="note">{html.escape(summary)}</p>',
    ]
    if metrics:
        body += ["<h2>Results</h2>", _table(metrics)]
    body += ["<h2>Samples</h2>", _grids(folder, metrics), "<h2>Training</h2>", _curves(log), "<h2>Configuration</h2>"]
    body.append(f"<pre>{html.escape(configuration)}</pre>")
    return write_page(folder, body)


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


def _summary(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {result['versions'].get(name, '?')}" for name in ("rdm", "torch"))
    return f"{result['steps']} steps in {result['seconds']:.0f} s, seed {result['seed']}, {versions}"


def _so_far(log: list[dict[str, float]]) -> str:
    """Of a run without a result."""
    if not log:
        return "not finished; nothing is logged yet"
    return f"not finished; {log[-1]['step']:.0f} steps in {log[-1].get('seconds', 0.0):.0f} s are logged"


def write_page(folder: Path, body: Sequence[str]) -> Path:
    """Write report.html of a folder from pieces of HTML; returns its path."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>rdm: {html.escape(folder.name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>{"".join(body)}</html>'
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def blank_figure(width: float, height: float) -> "Figure":
    """An empty matplotlib figure of a size in inches, without global state.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError('a report needs matplotlib; pip install "rdm-torch[report]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: "Figure") -> str:
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _table(metrics: dict[str, Metric]) -> str:
    compared = list(dict.fromkeys(name.split(": ")[0] for name in metrics if ": " in name))
    any_metric = next(iter(metrics.values()))
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("metric", *compared, "this run"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table(metrics, [*compared, ""])
    )
    ratios = (
        "Distances are ratios: generated items to the reference, over a fresh real split to the reference, so that 1 "
        "is what real data scores and less is better. accuracy: share of items that the judge gives the class they "
        "were asked for. spread: distance between items of one class, real data 1, collapse 0. copies: share nearer "
        "to a training item than 99 % of fresh real ones are, expected 0.01. The same noise in every column. "
    )
    interval = "95 % intervals: ± half of one, or ×÷ its factor (1 ×÷2 is 0.5 to 2)."
    note = f"{ratios if compared else ''}n = {any_metric.n} each; {interval}"
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{inner}</div><p class="note">{note}</p>'


def _grids(folder: Path, metrics: dict[str, Metric]) -> str:
    titled = compared_pictures(folder / "samples")
    if titled:
        by_class = '<p class="note">A column is a class; the same noise in every picture but the real one.</p>'
        note = by_class if any(": " in name for name in metrics) else ""
    else:
        steps = sorted((folder / "samples").glob("[0-9]*.png"))
        chosen = sorted({0, len(steps) // 2, len(steps) - 1}) if steps else []
        titled = [(f"step {int(steps[i].stem)}", steps[i]) for i in chosen]
        note = "" if titled else '<p class="note">This run draws no samples.</p>'
    figures = "".join(
        f'<figure><figcaption>{html.escape(title)}</figcaption><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></figure>'
        for title, path in titled
    )
    return f'<div class="grids">{figures}</div>{note}'


def _curves(log: list[dict[str, Any]]) -> str:
    """One panel a group of logged values: distances (logarithmic), loss, gradient norm and the rest."""
    if not log:
        return '<p class="note">Nothing was logged.</p>'
    names = [
        name
        for name in dict.fromkeys(name for entry in log for name in entry)
        if name not in ("step", "seconds", "lr") and "_share/" not in name and "dropped/" not in name
    ]
    distances = [name for name in names if name.startswith("distance/")]
    panels = [[name] for name in names if name not in distances and not (distances and name == "loss")]
    panels = [distances, *panels] if distances else panels
    figure = blank_figure(3.6 * len(panels), 2.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, group in zip(axes, panels, strict=True):
        for name in group:
            pairs = [(entry["step"], entry[name]) for entry in log if name in entry]
            axis.plot(*zip(*pairs, strict=True), label=drawn(name.removeprefix("distance/")), linewidth=1)
        if all(entry.get(name, 1) > 0 for entry in log for name in group):
            axis.set_yscale("log")
        title = "distance" if group == distances and distances else group[0].replace("_", " ")
        axis.set_title(drawn(title), fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(group) > 1:
            axis.legend(fontsize=8)
    return svg(figure)
