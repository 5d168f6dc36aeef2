"""Table, verdicts and picture of the memories' sweep: python -m experiments.spiral SWEEP_OR_CSV [--out FOLDER].

Of a sweep's folder (`rdm sweep experiments/spiral/memories.gin`) memories.csv is written to FOLDER, a row a finished
cell and seed; from then on that file is enough.
"""

import argparse
import csv
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from rdm.files.store import write_text
from rdm.matching.metric import student

KEYS = "objective", "population", "training"
FIGURES = "recall", "distance", "off plane", "seconds", "gradient share"
METRIC = "distance"
AWAY = 2.8  # from the origin, within which the data lie: a larger distance has run away
QUANTILES = {1: 12.706, 2: 4.303}  # of Student's law, for the few seeds at which the series in `student` is off
NOT_RUN = "not run"

Key = tuple[str, str, str]


class Cell(NamedTuple):
    """Mean over seeds and half its 95 % interval, by Student's law."""

    mean: float
    half: float

    def __str__(self) -> str:
        if math.isinf(self.half):
            return f"{self.mean:.3g} (one seed)"
        digits = 3 if self.mean < 1 else 1 if self.mean < 100 else 0
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


class Found:
    """Finished cells, by objective, population and training, a record a seed."""

    def __init__(self, rows: list[dict[str, str]]):
        self.rows, self.cells = rows, defaultdict[Key, list[dict[str, float]]](list)
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            self.cells[row[KEYS[0]], row[KEYS[1]], row[KEYS[2]]].append({name: float(row[name]) for name in FIGURES})

    def values(self, key: Key, metric: str = METRIC) -> list[float]:
        """Of every seed."""
        return [record[metric] for record in self.cells.get(key, [])]

    def cell(self, key: Key, metric: str = METRIC) -> Cell | None:
        """None where it was not run."""
        return mean(self.values(key, metric))

    def way(self, objective: str, population: str, training: str) -> Cell | None:
        """How much of the way from the batch to four batches a memory goes: 0 as without, 1 as with four batches.

        Each seed's gain over the mean of the gap; the gap's own error is not in the interval. None: not run, or no gap
        to be seen, its interval being as large as it is.
        """
        batch = population.partition(",")[0]
        small, large = ((objective, each, training) for each in (batch, f"batch {4 * int(batch.split()[1])}"))
        near, far, held = (self.values(each) for each in (small, large, (objective, population, training)))
        if min(map(len, (near, far, held))) < 2 or len(near) != len(held):
            return None
        gap = mean([a - b for a, b in zip(near, far, strict=False)])
        if gap is None or gap.mean <= gap.half:
            return None
        return mean([(a - b) / gap.mean for a, b in zip(near, held, strict=True)])

    def named(self, position: int) -> list[str]:
        """Labels of an axis, in the order of the grid's first appearance."""
        return list(dict.fromkeys(key[position] for key in self.cells))


def mean(values: list[float]) -> Cell | None:
    """Mean and half its interval; none of nothing."""
    if not values:
        return None
    if len(values) == 1:
        return Cell(values[0], math.inf)
    freedom = len(values) - 1
    error = statistics.stdev(values) / len(values) ** 0.5
    return Cell(statistics.mean(values), error * (QUANTILES.get(freedom) or student(freedom)))


def read(place: Path) -> Found:
    """The cells of a sweep's folder, or of the file that was written of one."""
    if place.is_file():
        return Found(list(csv.DictReader(place.read_text().splitlines())))
    rows = []
    for row in csv.DictReader((place / "sweep.csv").read_text().splitlines()):
        if row["status"] == "done":
            last = json.loads((place / row["folder"] / "log.jsonl").read_text().splitlines()[-1])
            share = last["gradient_share/pixels"]
            figures = {name: f"{float(row[name]):.5g}" for name in FIGURES[:-1]} | {FIGURES[-1]: f"{share:.3g}"}
            rows.append({**{key: row[key] for key in KEYS}, "seed": row["rdm.train.seed"], **figures})
    return Found(rows)


def as_csv(found: Found) -> str:
    """A row a finished cell and seed."""
    names = [*KEYS, "seed", *FIGURES]
    lines = [",".join(f'"{row[name]}"' if "," in row[name] else row[name] for name in names) for row in found.rows]
    return "\n".join([",".join(names), *lines]) + "\n"


def table(found: Found, training: str) -> str:
    """A row an objective, a column a population: distance, and where it is a memory's the way that it goes."""
    populations = [p for p in found.named(1) if any(k[1] == p and k[2] == training for k in found.cells)]
    lines = ["| objective | " + " | ".join(populations) + " |", "|" + " --- |" * (1 + len(populations))]
    for objective in found.named(0):
        cells = []
        for population in populations:
            cell, way = found.cell((objective, population, training)), found.way(objective, population, training)
            went = f" ({100 * way.mean:.0f} ± {100 * way.half:.0f} %)" if way is not None and "," in population else ""
            went = " (ran away)" if cell is not None and cell.mean > AWAY else went
            cells.append(NOT_RUN if cell is None else f"{cell}{went}")
        if set(cells) != {NOT_RUN}:
            lines.append(f"| `{objective}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(found: Found, training: str) -> str:
    """Seconds a cell and the live batch's share of the gradient, by population, over all objectives."""
    lines = ["| population | seconds a cell | gradient share |", "| --- | --- | --- |"]
    for population in found.named(1):
        keys = [key for key in found.cells if key[1:] == (population, training)]
        if keys:
            seconds = [v for key in keys for v in found.values(key, "seconds")]
            shares = {v for key in keys for v in found.values(key, "gradient share")}
            lines.append(f"| {population} | {statistics.median(seconds):.0f} | {', '.join(map(str, sorted(shares)))} |")
    return "\n".join(lines)


def draw(found: Found, out: Path) -> None:
    """A panel a training: every seed a dot, objectives as rows, populations as colours."""
    from matplotlib.figure import Figure

    trainings, objectives = found.named(2), found.named(0)[::-1]
    populations = found.named(1)
    figure = Figure(figsize=(4.6 * len(trainings), 0.9 * len(objectives) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(trainings), squeeze=False, sharey=True)[0]
    for panel, training in zip(panels, trainings, strict=True):
        for number, population in enumerate(populations):
            shift = 0.35 - 0.7 * number / max(1, len(populations) - 1)
            points = [(v, i + shift) for i, o in enumerate(objectives) for v in found.values((o, population, training))]
            x, y = zip(*points, strict=True) if points else ((), ())
            panel.scatter(x, y, s=16, color=f"C{number}", label=population)
        values = [v for key in found.cells if key[2] == training for v in found.values(key)]
        panel.set(xscale="log" if max(values) > 10 * min(values) else "linear")
        panel.set(xlabel="median distance to the curve", title=training)
        panel.set_yticks(range(len(objectives)), objectives)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels))
    figure.savefig(out, dpi=110)


def main() -> None:
    """Write what --out asks for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = read(options.place)
    for training in found.named(2):
        print(f"{training}\n\n{table(found, training)}\n\n{costs(found, training)}\n")
    if options.out:
        write_text(options.out / "memories.csv", as_csv(found))
        draw(found, options.out / "memories.png")


if __name__ == "__main__":
    main()
