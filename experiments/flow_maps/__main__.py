"""Table and picture of a sweep: python -m experiments.flow_maps SWEEP.csv --metric NAME --out PICTURE.png."""

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

COLUMNS = "jumps", "method"


def gathered(path: Path, metric: str) -> dict[tuple[str, str], list[dict[str, float]]]:
    """The metric, its floor, and seconds of every finished point, by jumps and method."""
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["status"] == "done":
                values = {name: float(row[name]) for name in (metric, "floor", "seconds") if row.get(name)}
                found[row["jumps"], row["method"]].append(values)
    return found


def table(found: dict[tuple[str, str], list[dict[str, float]]], metric: str) -> str:
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


def draw(found: dict[tuple[str, str], list[dict[str, float]]], metric: str, out: Path) -> None:
    """Every seed a dot, methods as rows, numbers of jumps as colours; the floor as a line."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(m for _, m in found))[::-1]
    figure = Figure(figsize=(7, 0.45 * len(methods) + 1.2), layout="constrained")
    axis = figure.subplots()
    for shift, k in zip((0.15, -0.15), sorted({k for k, _ in found}), strict=False):
        points = [(v[metric], i + shift) for i, m in enumerate(methods) for v in found.get((k, m), [])]
        axis.scatter(*zip(*points, strict=True), s=18, label=f"{k} jump{'s' * (k != '1')}")
    floors = [v["floor"] for values in found.values() for v in values if "floor" in v]
    if floors:
        axis.axvline(floors[0], color="0.6", linewidth=1, label="real against real")
    axis.set(yticks=range(len(methods)), yticklabels=methods, xscale="log", xlabel=metric)
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--metric", default="sliced distance")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    held = gathered(options.sweep, options.metric)
    print(table(held, options.metric))
    if options.out:
        draw(held, options.metric, options.out)
