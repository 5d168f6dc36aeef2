"""Tables and a picture of sweeps: python -m experiments.flow_maps SWEEP.csv=METRIC ... --out PICTURE.png."""

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

Found = dict[tuple[str, str], list[dict[str, float]]]


def gathered(path: Path, metric: str) -> Found:
    """The metric and that of real items ("floor") of every finished point, by jumps and method."""
    found: Found = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["status"] == "done":
                values = {metric: row[metric], "floor": row.get("floor") or row.get(f"fresh real: {metric}")}
                found[row["jumps"], row["method"]].append({name: float(v) for name, v in values.items() if v})
    return found


def table(found: Found, metric: str) -> str:
    """A row a method: mean and range over seeds, for each number of jumps."""
    jumps = sorted({k for k, _ in found})
    lines = ["| method | " + " | ".join(f"{k} jump{'s' * (k != '1')}" for k in jumps) + " |"]
    lines += ["|---" * (1 + len(jumps)) + "|"]
    for method in dict.fromkeys(m for _, m in found):
        cells = []
        for k in jumps:
            values = [each[metric] for each in found.get((k, method), [])]
            mean = f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""
            cells.append(mean)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(sweeps: dict[str, tuple[str, Found]], out: Path) -> None:
    """A panel a sweep: every seed a dot, methods as rows, numbers of jumps as colours; real items as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    methods = list(dict.fromkeys(m for _, found in sweeps.values() for _, m in found))[::-1]
    figure = Figure(figsize=(2.2 + 3.9 * len(sweeps), 0.42 * len(methods) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for axis, (title, (metric, found)) in zip(panels, sweeps.items(), strict=True):
        for shift, k in zip((0.15, -0.15), sorted({k for k, _ in found}), strict=False):
            points = [(v[metric], i + shift) for i, m in enumerate(methods) for v in found.get((k, m), [])]
            axis.scatter(*zip(*points, strict=True), s=18, label=f"{k} jump{'s' * (k != '1')}")
        if floors := [v["floor"] for values in found.values() for v in values if "floor" in v]:
            axis.axvline(floors[0], color="0.6", linewidth=1, label="real against real")
        axis.set(yticks=range(len(methods)), yticklabels=methods, xscale="log", xlabel=metric, title=title)
        axis.xaxis.set(major_locator=LogLocator(subs=(1, 1.5, 2, 3, 5)), minor_locator=NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    panels[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP.csv=METRIC")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shown: dict[str, tuple[str, Found]] = {}
    for each in options.sweeps:
        place, _, name = each.partition("=")
        shown[Path(place).stem] = name, gathered(Path(place), name)
        print(f"{place}, {name}\n{table(shown[Path(place).stem][1], name)}\n")
    if options.out:
        draw(shown, options.out)
