"""python -m experiments.cifar10 STUDY [NAME=VERDICT.json ...] --csv FILE --curves PNG --pictures PNG: its tables.

STUDY is the folder of `rdm sweep study.gin`, VERDICT.json what `rdm evaluate --json` wrote of the flow model.
"""

import argparse
import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rdm.files.records import read_log
from rdm.files.store import read_json, write_bytes, write_text
from rdm.matching.metric import Metric
from rdm.reports.found import read_sweep

JUDGES = "mobilenetv1_075", "mobilenetv1_100", "mobilenetv2_100", "squeezenet"  # no run trains on them
TRAINED = "mobilenetv1_025", "mobilenetv1_050"  # the first alone in the run with one encoder
RATIOS = "sw_r", "mmd_r"
SHOWN = "compare 00 this run.png"


class Found(NamedTuple):
    """What one generator scored."""

    run: str
    seed: int
    metrics: Mapping[str, Metric]
    log: Path | None = None

    def ratio(self, metric: str, members: Sequence[str]) -> float:
        """Geometric mean of a ratio over encoders."""
        return math.exp(statistics.fmean(math.log(self.metrics[f"{metric}/{m}"].value) for m in members))


def found_in(study: Path, verdicts: Mapping[str, Path]) -> Iterator[Found]:
    """Verdicts of the flow model, then every finished point of the sweep."""
    for name, path in verdicts.items():
        yield Found(name, 0, {k: Metric(**v) for k, v in read_json(path)["metrics"].items()})
    sweep = read_sweep(study)
    for row in sweep.rows:
        labels = dict(zip(sweep.axes, row.labels, strict=True))
        if row.status == "done":
            log = study / row.folder / "log.jsonl"
            yield Found(str(labels["run"]), int(labels["rdm.train.seed"]), row.metrics, log)


def table(everything: Sequence[Found], metric: str) -> str:
    """A line a run, an encoder a column; mean over seeds and half their range, and over the four judges."""
    columns = {**{m: (m,) for m in (*TRAINED, *JUDGES)}, "four judges": JUDGES}
    lines = [["run", "seeds", *columns]]
    for run in dict.fromkeys(each.run for each in everything):
        of = [each for each in everything if each.run == run]
        cells = [_cell([each.ratio(metric, members) for each in of]) for members in columns.values()]
        lines.append([run, str(len(of)), *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: Sequence[float]) -> str:
    """The mean, and half the range where there are several."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.3g}" + (f" ± {half:.2g}" if len(values) > 1 else "")


def as_csv(everything: Sequence[Found]) -> str:
    """Every ratio with its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "seed", "metric", "encoder", "value", "low", "high", "n"])
    for each in everything:
        for metric in RATIOS:
            for member in (*TRAINED, *JUDGES):
                m = each.metrics[f"{metric}/{member}"]
                numbers = (f"{value:.4g}" for value in (m.value, m.low, m.high))
                writer.writerow([each.run, each.seed, metric, member, *numbers, m.n])
    return text.getvalue()


def curves(everything: Sequence[Found]) -> bytes:
    """PNG of the distance that the runs with MMD see under the encoders of training, by pictures generated; seed 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    axes = figure.subplots(1, len(TRAINED), sharey=True)
    for k, each in enumerate(everything):
        rows = [] if each.log is None or each.seed or each.run.startswith("frechet") else read_log(each.log)
        for axis, member in zip(axes, TRAINED, strict=True):
            seen = [(row["step"], row[f"distance/{member}"]) for row in rows if f"distance/{member}" in row]
            if seen:
                steps, values = zip(*seen, strict=True)
                mark = "o" if len(steps) < 8 else None
                pictures = [4096 * step / rows[-1]["step"] for step in steps]
                axis.plot(pictures, values, label=each.run, color=f"C{k % 10}", lw=1, marker=mark, ms=3)
            axis.set(title=member, xlabel="pictures", yscale="log")
    axes[0].set_ylabel("squared MMD of the step's pictures")
    handles, names = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, names, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def pictures(everything: Sequence[Found]) -> bytes:
    """PNG with the first twenty pictures of every run of seed 0, from one noise, under its name."""
    from PIL import Image, ImageDraw

    shown = [(each.run, each.log.parent / "samples" / SHOWN) for each in everything if each.log and not each.seed]
    strips = [(run, Image.open(path).convert("RGB")) for run, path in shown if path.is_file()]
    width, height = max(strip.width for _, strip in strips), 66 + 14
    whole = Image.new("RGB", (width, height * len(strips)), "white")
    for k, (run, strip) in enumerate(strips):
        ImageDraw.Draw(whole).text((2, k * height + 1), run, fill="black")
        whole.paste(strip.crop((0, 0, strip.width, 66)), (0, k * height + 14))
    buffer = io.BytesIO()
    whole.quantize(255).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Print the tables; write what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m experiments.cifar10", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("verdicts", nargs="*", metavar="NAME=VERDICT.json")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    named = {name: Path(path) for name, _, path in (each.partition("=") for each in options.verdicts)}
    everything = list(found_in(options.study, named))
    for metric in RATIOS:
        print(f"\n**{metric}**\n\n{table(everything, metric)}")
    if options.csv is not None:
        write_text(options.csv, as_csv(everything))
    if options.curves is not None:
        write_bytes(options.curves, curves(everything))
    if options.pictures is not None:
        write_bytes(options.pictures, pictures(everything))


if __name__ == "__main__":
    main()
