"""Tables and picture of a study of memories: python -m experiments.memories SWEEP_OR_CSV ... [--out FOLDER].

A study is a sweep over "objective", "population" ("batch 8", "batch 8, queue", "batch 8 of 32", ...), "training" and
the seed. Of its folder (`rdm sweep experiments/spiral/memories.gin`) memories.csv is written to FOLDER, a row a
finished cell and seed, with the figures named, of which the first is what the tables are of; from then on that file is
enough. Of several folders and files it is one study: a later one adds its cells and seeds, and replaces those that an
earlier one has, too. Smaller figures are better.
"""

import argparse
import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rdm.errors import InputError
from rdm.files.store import write_text
from rdm.matching.metric import student

KEYS = "objective", "population", "training"
COSTS = "seconds", "gradient share"
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
        digits = 3 if self.mean < 1 else 2 if self.mean < 10 else 1 if self.mean < 100 else 0
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


class Found:
    """Finished cells, by objective, population and training, a record a seed."""

    def __init__(self, rows: list[dict[str, str]]):
        self.rows, self.cells = rows, defaultdict[Key, list[dict[str, float]]](list)
        self.figures = [name for name in rows[0] if name not in (*KEYS, "seed")]
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            self.cells[row[KEYS[0]], row[KEYS[1]], row[KEYS[2]]].append({k: float(row[k]) for k in self.figures})

    def values(self, key: Key, metric: str | None = None) -> list[float]:
        """Of every seed; of the first figure where none is named."""
        return [record[metric or self.figures[0]] for record in self.cells.get(key, [])]

    def cell(self, key: Key, metric: str | None = None) -> Cell | None:
        """None where it was not run."""
        return mean(self.values(key, metric))

    def way(self, objective: str, population: str, training: str) -> Cell | None:
        """How much of the way from the batch to the next larger one a population goes: 0 as the one, 1 as the other.

        Each seed's gain over the mean of the gap; the gap's own error is not in the interval. None: not run, or no gap
        to be seen, its interval being as large as it is.
        """
        sizes = sorted(int(name.split()[1]) for name in self.named(1) if name.count(" ") == 1)
        batch = int(population.replace(",", "").split()[1])
        larger = [size for size in sizes if size > batch]
        if population == f"batch {batch}" or not larger:
            return None
        compared = f"batch {batch}", f"batch {larger[0]}", population
        near, far, held = (self.values((objective, each, training)) for each in compared)
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


def read(places: Iterable[Path], figures: Sequence[str] = ()) -> Found:
    """The cells of sweeps' folders, with these figures, and of files that were written of some.

    Of equal cells and seeds the last counts, at the place of the first.

    Raises:
        InputError: no finished point; places whose figures differ.
    """
    merged: dict[tuple[str, ...], dict[str, str]] = {}
    for place in places:
        for row in _rows(place, figures):
            first = next(iter(merged.values()), row)
            if row.keys() != first.keys():
                had, has = (", ".join(each) for each in (first, row))
                raise InputError(f"{place}: expected the columns {had}; got {has}; name the same --figures")
            merged[tuple(row[key] for key in (*KEYS, "seed"))] = row
    if not merged:
        raise InputError("no finished point; run `rdm sweep` first")
    return Found(list(merged.values()))


def _rows(place: Path, figures: Sequence[str]) -> list[dict[str, str]]:
    """A finished cell and seed each."""
    if place.is_file():
        return list(csv.DictReader(place.read_text().splitlines()))
    if not (place / "sweep.csv").exists():
        raise InputError(f"{place}: expected a sweep's folder or a file written of one; run `rdm sweep` first")
    rows = []
    for row in csv.DictReader((place / "sweep.csv").read_text().splitlines()):
        if row["status"] == "done":
            last = json.loads((place / row["folder"] / "log.jsonl").read_text().splitlines()[-1])
            share = next(value for name, value in last.items() if name.startswith("gradient_share/"))
            found = {name: f"{float(row[name]):.5g}" for name in (*figures, "seconds")} | {COSTS[1]: f"{share:.3g}"}
            rows.append({**{key: row[key] for key in KEYS}, "seed": row["rdm.train.seed"], **found})
    return rows


def as_csv(found: Found) -> str:
    """A row a finished cell and seed."""
    names = [*KEYS, "seed", *found.figures]
    lines = [",".join(f'"{row[name]}"' if "," in row[name] else row[name] for name in names) for row in found.rows]
    return "\n".join([",".join(names), *lines]) + "\n"


def table(found: Found, training: str, away: float = math.inf) -> str:
    """A row a population, a column an objective: the first figure, and the way that the population goes.

    Populations of which this training has no cell are left out. Figures beyond `away` have run away.
    """
    objectives = [o for o in found.named(0) if any(k[0] == o and k[2] == training for k in found.cells)]
    lines = [
        "| population | " + " | ".join(f"`{o}`" for o in objectives) + " |",
        "|" + " --- |" * (1 + len(objectives)),
    ]
    for population in found.named(1):
        if not any(key[1:] == (population, training) for key in found.cells):
            continue
        cells = []
        for objective in objectives:
            cell, way = found.cell((objective, population, training)), found.way(objective, population, training)
            went = "" if way is None else f" ({100 * way.mean:.0f} ± {100 * way.half:.0f} %)"
            went = " (ran away)" if cell is not None and cell.mean > away else went
            cells.append(NOT_RUN if cell is None else f"{cell}{went}")
        lines.append(f"| {population} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(found: Found, training: str) -> str:
    """Seconds a cell and the live batch's share of the gradient, by population, over all objectives."""
    lines = ["| population | seconds a cell | gradient share |", "| --- | --- | --- |"]
    for population in found.named(1):
        keys = [key for key in found.cells if key[1:] == (population, training)]
        if keys:
            seconds = [v for key in keys for v in found.values(key, "seconds")]
            shares = sorted({v for key in keys for v in found.values(key, "gradient share")})
            lines.append(f"| {population} | {statistics.median(seconds):.0f} | {', '.join(map(str, shares))} |")
    return "\n".join(lines)


def draw(found: Found, out: Path) -> None:
    """A panel a training: every seed a dot, objectives as rows, populations as colours."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colours = colormaps["turbo"]
    trainings, objectives = found.named(2), found.named(0)[::-1]
    populations = found.named(1)
    figure = Figure(figsize=(5.2 * len(trainings), 0.9 * len(objectives) + 2), layout="constrained")
    panels = figure.subplots(1, len(trainings), squeeze=False, sharey=True)[0]
    for panel, training in zip(panels, trainings, strict=True):
        for number, population in enumerate(populations):
            shift = 0.35 - 0.7 * number / max(1, len(populations) - 1)
            points = [(v, i + shift) for i, o in enumerate(objectives) for v in found.values((o, population, training))]
            x, y = zip(*points, strict=True) if points else ((), ())
            panel.scatter(x, y, s=10, color=colours(number / max(1, len(populations) - 1)), label=population)
        values = [v for key in found.cells if key[2] == training for v in found.values(key)]
        panel.set(xscale="log" if max(values) > 10 * min(values) else "linear")
        panel.set(xlabel=found.figures[0], title=training)
        panel.set_yticks(range(len(objectives)), objectives)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=2 * len(trainings))
    figure.savefig(out, dpi=110)


def main() -> None:
    """Write what --out asks for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", type=Path, nargs="+", metavar="SWEEP_OR_CSV")
    parser.add_argument("--figures", default="distance,recall,off plane", help="columns of sweep.csv")
    parser.add_argument("--away", type=float, default=math.inf, help="what has run away")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--name", default="memories", help="of the file and the picture there")
    options = parser.parse_args()
    try:
        found = read(options.places, options.figures.split(","))
    except InputError as error:
        parser.error(str(error))
    for training in found.named(2):
        print(f"{training}\n\n{table(found, training, options.away)}\n\n{costs(found, training)}\n")
    if options.out:
        write_text(options.out / f"{options.name}.csv", as_csv(found))
        draw(found, options.out / f"{options.name}.png")


if __name__ == "__main__":
    main()
