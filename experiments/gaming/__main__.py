"""python -m experiments.gaming STUDY --csv FILE --curves PNG --pictures PNG: what `gaming.gin` found.

STUDY is the folder of `rdm sweep gaming.gin`. In the table, encoders that trained are bold.
"""

import argparse
import csv
import io
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.cifar10.__main__ import JUDGES, TRAINED
from rdm.files.records import read_log
from rdm.files.store import read_text, write_bytes, write_text
from rdm.matching.metric import Metric
from rdm.reports.found import read_sweep
from rdm.sweeping.engine import OUTPUT

ENCODERS = *TRAINED, *JUDGES
APART = "mobilenetv1_075", "squeezenet"  # on which no run trains
SHOWN, COLUMNS, CELL = "compare 00 this run.png", 10, 33  # pixels
WARNED = re.compile(r"after step (\d+): the loss may be gamed")


class Run(NamedTuple):
    """One finished point of the sweep."""

    name: str
    seed: int
    metrics: Mapping[str, Metric]
    rows: Sequence[Mapping[str, float]]  # of the log
    folder: Path

    def ratio(self, name: str, members: Sequence[str]) -> float:
        """Geometric mean over encoders of the SW ratio or of the MMD's, at the end."""
        return statistics.geometric_mean(
            self.metrics[f"sw_r/{m}"].value if name == "sw_r" else self.curve(m)[-1][1] for m in members
        )

    @property
    def trained(self) -> list[str]:
        """Encoders that the loss had."""
        return [name for name in ENCODERS if f"distance/{name}" in self.rows[-1]]

    @property
    def warned(self) -> int | None:
        """The step after which the monitor first said that the loss may be gamed."""
        found = WARNED.search(read_text(self.folder / OUTPUT))
        return None if found is None else int(found[1])

    def curve(self, encoder: str) -> list[tuple[float, float]]:
        """Steps, and the MMD's ratio to that of fresh real pictures."""
        key = f"fresh_ratio/{encoder}"
        return [(row["step"], row[key]) for row in self.rows if key in row]


def runs_in(study: Path) -> Iterator[Run]:
    """Every finished point."""
    sweep = read_sweep(study)
    for row in sweep.rows:
        labels = dict(zip(sweep.axes, row.labels, strict=True))
        if row.status == "done":
            folder = study / row.folder
            log = read_log(folder / "log.jsonl")
            yield Run(str(labels["run"]), int(labels["rdm.train.seed"]), row.metrics, log, folder)


def table(runs: Sequence[Run], metric: str) -> str:
    """A line a run, an encoder a column: means over seeds and half their ranges, bold where the encoder trained."""
    columns = {**{name: (name,) for name in ENCODERS}, "the two that never train": APART}
    lines = [["run", "seeds", *columns, "warned after"]]
    for name in dict.fromkeys(run.name for run in runs):
        of = [run for run in runs if run.name == name]
        cells = []
        for column, members in columns.items():
            text = _cell([run.ratio(metric, members) for run in of])
            cells.append(f"**{text}**" if column in of[0].trained and name != "start" else text)
        steps = [run.warned for run in of]
        lines.append([name, str(len(of)), *cells, ", ".join("-" if step is None else str(step) for step in steps)])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: Sequence[float]) -> str:
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.2g}" + (f" ± {half:.1g}" if len(values) > 1 else "")


def as_csv(runs: Sequence[Run]) -> str:
    """The ratio of the MMD along the steps, and that of SW at the end with its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "seed", "encoder", "trains", "metric", "step", "value", "low", "high"])
    for run in runs:
        last = int(run.rows[-1]["step"])
        for encoder in ENCODERS:
            head = run.name, run.seed, encoder, int(encoder in run.trained)
            for step, value in run.curve(encoder):
                writer.writerow([*head, "mmd_r", int(step), f"{value:.4g}", "", ""])
            m = run.metrics[f"sw_r/{encoder}"]
            writer.writerow([*head, "sw_r", last, *(f"{number:.4g}" for number in (m.value, m.low, m.high))])
    return text.getvalue()


def curves(runs: Sequence[Run]) -> bytes:
    """PNG, a panel a run: the ratios of every encoder along the steps, all seeds, from those of the start."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    starts = {run.seed: run for run in runs if run.name == "start"}
    names = [name for name in dict.fromkeys(run.name for run in runs) if name != "start"]
    columns = min(3, len(names))
    height = -(-len(names) // columns)
    figure = Figure(figsize=(9, 2.4 * height + 0.6), dpi=80, layout="constrained")
    grid = figure.subplots(height, columns, sharey=True, squeeze=False).flatten()
    for axis, name in zip(grid, names, strict=False):
        for run in (run for run in runs if run.name == name):
            for k, encoder in enumerate(ENCODERS):
                begun = starts[run.seed].curve(encoder)[:1] if run.seed in starts else []
                steps, values = zip(*[(0, value) for _, value in begun], *run.curve(encoder), strict=True)
                trains = encoder in run.trained
                label = encoder if run.seed == min(starts, default=run.seed) and axis is grid[0] else None
                style = {"color": f"C{k}", "ls": "-" if trains else ":", "lw": 1.8 if trains else 1.0}
                axis.plot(steps, values, label=label, **style)
        axis.axhline(1, color="black", lw=0.6)
        axis.set(title=name, yscale="log", xlabel="steps" if axis in grid[-columns:] else None)
    for axis in grid[len(names) :]:
        axis.set_axis_off()
    figure.supylabel("MMD, over that of fresh real pictures", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def pictures(runs: Sequence[Run]) -> bytes:
    """PNG with the first ten pictures of every run of the first seed, under its name."""
    from PIL import Image, ImageDraw

    first = min(run.seed for run in runs)
    shown = [(run.name, run.folder / "samples" / SHOWN) for run in runs if run.seed == first]
    strips = [(name, Image.open(path).convert("RGB").crop((0, 0, COLUMNS * CELL, CELL))) for name, path in shown]
    side = 2 * CELL + 14
    whole = Image.new("RGB", (2 * COLUMNS * CELL, side * len(strips)), "white")
    for k, (name, strip) in enumerate(strips):
        ImageDraw.Draw(whole).text((2, k * side + 1), name, fill="black")
        whole.paste(strip.resize((2 * strip.width, 2 * strip.height), Image.Resampling.NEAREST), (0, k * side + 14))
    buffer = io.BytesIO()
    whole.quantize(255).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Print the tables; write what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gaming", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    runs = list(runs_in(options.study))
    for metric in ("mmd_r", "sw_r"):
        print(f"\n**{metric}**\n\n{table(runs, metric)}")
    if options.csv is not None:
        write_text(options.csv, as_csv(runs))
    if options.curves is not None:
        write_bytes(options.curves, curves(runs))
    if options.pictures is not None:
        write_bytes(options.pictures, pictures(runs))


if __name__ == "__main__":
    main()
