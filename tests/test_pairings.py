"""What the study of memories saw: its tables, the page that draws a rule from them, and the warning of `rdm train`."""

import csv
import math
import re
import statistics
import warnings
from collections import defaultdict
from pathlib import Path

import pytest

import rdm
from experiments.memories import NOT_RUN, Found, as_csv, draw, main, read, table
from experiments.spiral import trial
from rdm.errors import InputError
from rdm.losses._pairings import pairings, warn_of_pairings

TABLES = {"spiral": "spiral/spiral.csv", "memories": "spiral/memories.csv", "digits": "digits/memories.csv"}
TABLES |= {"objectives": "spiral/objectives.csv", "dimension": "spiral/dimension.csv"}
TABLES |= {"sound": "spoken_digits/memories.csv", "words": "number_words/memories.csv"}
TRAININGS = {"digits": "trained, 5e-4", "sound": "trained, 5e-4", "words": "trained, 3e-4"}
FIRST = dict.fromkeys(("spiral", "memories", "objectives", "dimension"), "distance") | {"words": "pairs"}
FIRST |= {"digits": "sw/held_out_mixer", "sound": "sw/held_out_judge"}
ROOT = Path(__file__).parent.parent
STUDY, PAGE = ROOT / "experiments" / "spiral", ROOT / "docs" / "objectives_and_memories.md"


def records(name: str) -> list[dict[str, str]]:
    """Rows of a table."""
    with (ROOT / "experiments" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def cell(name: str, objective: str, population: str, training: str, metric: str = "distance") -> float:
    """Its mean."""
    rows = [r for r in records(name) if (r["objective"], r["population"]) == (objective, population)]
    return statistics.mean(float(r[metric]) for r in rows if r.get("training", "") == training)


def test_the_warning_quotes_the_tables():
    assert pairings()
    for row in pairings():
        for said, population in ((row.found, row.population), (row.without, row.beside)):
            found = cell(row.table, row.objective, population, row.training)
            assert float(said) == pytest.approx(found, rel=0.005), row
        assert float(row.found) > 2 * float(row.without)
        assert row.objective in rdm.names("objectives") and row.memory in rdm.names("memories")


@pytest.mark.parametrize("made", [rdm.objective("mmd"), rdm.objective("resampled", objective="mmd")])
def test_a_pairing_that_failed_is_warned_of(made):
    for given in (made, {"pixels": rdm.objective("energy"), "other": made}):
        with pytest.warns(
            UserWarning, match=r"mmd with a memory \(queue\) at a rate of 0.001.*1630, 0.072 without.*rid"
        ):
            warn_of_pairings(given, rdm.Queue(9), 1e-3)
    with warnings.catch_warnings(action="error"):
        warn_of_pairings(made, rdm.Queue(9), 9e-4)
        warn_of_pairings(made, rdm.Queue(9, riding=True), 1e-3)
        warn_of_pairings(made, None, 1e-3)
        warn_of_pairings(rdm.objective("energy"), rdm.Queue(9), 1e-3)
    with pytest.warns(UserWarning, match=r"drifting with a memory \(queue, riding\).*0.506, 0.197 without.*no memory"):
        warn_of_pairings(rdm.objective("drifting"), rdm.Queue(9, riding=True), 1e-3)


def test_the_studys_page_has_the_table_of_its_file():
    cells = {(r["objective"], r["population"]): r for r in records("spiral/spiral.csv")}
    text = (STUDY / "README.md").read_text().split("## With a memory, and other batch sizes")[1]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    heads, found = [head.strip() for head in lines[0][1:]], 0
    for objective, *row in lines[2:]:
        for population, shown in zip(heads, row, strict=True):
            kept = cells[objective.strip(" `"), population]
            said = [f"{kept[k]} ± {kept[f'{k} sd']}" if kept[f"{k} sd"] else kept[k] for k in ("recall", "distance")]
            assert shown.split("(")[0].strip() == " / ".join(said)
            found += 1
    assert found == len(cells) == 40


STUDIES = TABLES.keys() - {"spiral"}


def page_of(name: str) -> str:
    """What is said of a table."""
    folder = (ROOT / "experiments" / TABLES[name]).parent
    return (folder / ("MEMORIES.md" if folder.name in ("spiral", "digits") else "README.md")).read_text()


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_page_has_the_tables_of_its_file_without_a_gap(name):
    place = ROOT / "experiments" / TABLES[name]
    found, away = read([place]), 2.8 if place.parent.name == "spiral" else math.inf
    assert {len(cell) for cell in found.cells.values()} == {3}, "a seed is missing"
    for training in found.named(2):
        shown = table(found, training, away)
        assert shown in page_of(name) and NOT_RUN not in shown, training


def test_the_pages_quote_the_tables():
    """A figure with its cell behind it is that cell's mean; one with an interval is in a table, under its objective."""
    found = [read([ROOT / "experiments" / TABLES[name]]) for name in STUDIES]
    seen = defaultdict[str, set[str]](set)
    for objective, cells in ((key[0], (each.cell(key), each.way(*key))) for each in found for key in each.cells):
        figure, way = cells
        seen[objective] |= {str(figure)} | ({f"{100 * way.mean:.0f} ± {100 * way.half:.0f} %"} if way else set())
    for text in (*map(page_of, STUDIES), PAGE.read_text()):
        plain = " ".join(text.split())
        quoted = re.findall(r"([\d.]+)(?: s)? \((\w+)(?: ([\w ]+))?: `(\w+)`, ([^;)]+)(?:; ([^)]+))?\)", plain)
        assert text != PAGE.read_text() or len(quoted) >= 50
        for said, name, metric, objective, population, training in quoted:
            mean = cell(TABLES[name], objective, population, training or TRAININGS.get(name, ""), metric or FIRST[name])
            rounding = 0.5 if mean > 10 else 0.0005 if mean < 1 else 0.005
            assert float(said) == pytest.approx(mean, rel=0, abs=1.01 * rounding), (said, name, objective, population)
        figure = r"-?\d+(?:\.\d+)? ± \d+(?:\.\d+)?(?: %)?"
        for objective, said in re.findall(rf"`(\w+)`(?: \||:)? ({figure})", plain):
            assert said in seen[objective], (objective, said)
        if text in (PAGE.read_text(), page_of("memories")):
            assert set(re.findall(figure, plain)) <= set().union(*seen.values())


def test_the_trials_tables_are_those_of_its_file():
    found, page = read([STUDY / "trial.csv"]), (STUDY / "PASTS.md").read_text()
    for objective in trial.OBJECTIVES:
        assert {len(found.values((objective, past, "trained, 1e-4"))) for past in trial.PASTS} == {3}
        assert trial.table(found, objective) in page


def test_how_far_a_memory_goes(tmp_path):
    """Closed form: distances 2.4, 1.4 and 0.4 of the batch, a memory and four batches are half of the way."""

    def row(population: str, seed: int, value: float) -> dict[str, str]:
        figures = {"distance": str(value), "recall": "1", "seconds": "9", "gradient share": "1.0"}
        return {"objective": "energy", "population": population, "training": "t", "seed": str(seed), **figures}

    values = {"batch 8": 2.4, "batch 8, queue": 1.4, "batch 32": 0.4}
    rows = [row(name, seed, value + 0.1 * seed) for name, value in values.items() for seed in range(3)]
    found = Found(rows)
    way = found.way("energy", "batch 8, queue", "t")
    assert way is not None and way.mean == pytest.approx(0.5) and way.half == pytest.approx(0, abs=1e-9)
    alone = found.cell(("energy", "batch 8", "t"))
    assert alone is not None and alone.mean == pytest.approx(2.5) and alone.half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert found.way("energy", "batch 32, queue", "t") is None and "(50 ± 0 %)" in table(found, "t")
    (tmp_path / "m.csv").write_text(as_csv(found))
    assert read([tmp_path / "m.csv"]).cells == found.cells
    draw(found, tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_a_later_sweep_completes_a_study_and_replaces_what_it_has_again(tmp_path, monkeypatch, capsys):
    """A file of two seeds, and a sweep that has the second anew, a third and one that failed."""

    def cells(*rows: tuple[int, float]) -> str:
        head = "objective,population,training,seed,distance,seconds,gradient share\n"
        return head + "".join(f'energy,"batch 8, queue","t, 1",{seed},{value},9,1\n' for seed, value in rows)

    (tmp_path / "m.csv").write_text(cells((1, 5.0), (0, 1.0)))
    sweep = tmp_path / "sweep"
    (sweep / "p").mkdir(parents=True)
    (sweep / "p" / "log.jsonl").write_text('{"gradient_share/pixels": 0.25}\n')
    lines = [f'energy,"batch 8, queue","t, 1",{s},{v},done,p,8' for s, v in ((1, 2.0), (2, 3.0))]
    lines += ['energy,"batch 8, queue","t, 1",3,,failed,q,']
    head = "objective,population,training,rdm.train.seed,distance,status,folder,seconds"
    (sweep / "sweep.csv").write_text("\n".join([head, *lines]) + "\n")
    found = read([tmp_path / "m.csv", sweep], ["distance"])
    key = "energy", "batch 8, queue", "t, 1"
    assert found.values(key) == [1, 2, 3] and found.values(key, "gradient share") == [1, 0.25, 0.25]
    assert read([sweep, tmp_path / "m.csv"], ["distance"]).values(key) == [1, 5, 3]
    arguments = ["memories", str(tmp_path / "m.csv"), str(sweep), "--figures", "distance", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--name", "whole"])
    main()
    assert "| batch 8, queue | 2.00 ± 2.48 |" in capsys.readouterr().out
    assert read([tmp_path / "whole.csv"]).cells == found.cells and (tmp_path / "whole.png").stat().st_size > 1000
    (tmp_path / "other.csv").write_text(cells((0, 1.0)).replace("distance", "recall"))
    for places, said in (([tmp_path / "m.csv", tmp_path / "other.csv"], "columns"), ([tmp_path / "none"], "rdm sweep")):
        with pytest.raises(InputError, match=said):
            read(places)


def test_a_population_of_which_some_are_live_goes_its_way_too():
    rows = [
        {"objective": "mmd", "population": name, "training": "t", "seed": str(seed), "distance": str(value + seed)}
        for name, value in {"batch 8": 12.0, "batch 8 of 32": 9.0, "batch 32": 8.0, "batch 128": 2.0}.items()
        for seed in range(3)
    ]
    found = Found(rows)
    way = found.way("mmd", "batch 8 of 32", "t")
    assert way is not None and way.mean == pytest.approx(0.75)
    assert found.way("mmd", "batch 32", "t") is None
    assert "| batch 8 of 32 | 10.0 ± 2.5 (75 ± 0 %) |" in table(found, "t") and "ran away" in table(found, "t", 5.0)
