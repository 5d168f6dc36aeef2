"""Sweeps: grids, hashes, points that run once, failures and kills that the next call mends, tables and report."""

import csv
import json
import math
import os
import signal
from pathlib import Path

import pytest

from rdm.__main__ import main
from rdm.app import config, sweep
from rdm.app.sweep import Point, _Work
from rdm.errors import InputError
from rdm.files.store import lock, write_json, write_text
from rdm.judging.evaluation import Metric
from rdm.registry import engines
from rdm.reports.found import Found, Row, read_sweep
from rdm.reports.sweep import print_summary, write_csv
from rdm.reports.sweep_page import write_sweep_report
from tests import processes

TINY = """
rdm.train.model = @generators.mlp()
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.spiral()
rdm.train.evaluation = @evaluations.spiral()
rdm.train.steps = 2
rdm.train.optimizer = @optimizers.adam
datasets.spiral.n = 100
evaluations.spiral.samples = 50
evaluations.spiral.resamples = 2
generators.mlp.width = 4
losses.matching.objective = @objectives.mmd()
losses.matching.battery = @rdm.battery()
losses.matching.population = 8
rdm.battery.members = [@representations.pixels()]
"""
SEEDS = "rdm.sweep.grid = {'rdm.train.seed': [0, 1]}\n"


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(TINY)
    return tmp_path


def planned(at: Path, grid: str, *, more: str = "") -> list[sweep.Point]:
    (at / "s.gin").write_text(f"include 'base.gin'\n{more}\nrdm.sweep.grid = {grid}\n")
    return sweep.plan(Path("s.gin"), at / "out")


def results(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("points/*/result.json"))}


def begun(at: Path, *arguments: str) -> processes.Command:
    """A sweep of s.gin into out, in a process without the tests' checks of shapes, which alter recorded defaults."""
    return processes.rdm("sweep", "s.gin", "--out", "out", *arguments, cwd=at)


# Grids


def test_the_grid_is_the_product_of_its_axes(at):
    points = planned(at, """{
        'rdm.train.seed': [0, 1, 2],
        'losses.matching.objective': [@objectives.mmd(), @objectives.sliced_wasserstein()],
        'size': {'small': {'generators.mlp.width': 4, 'generators.mlp.depth': 1}, 'large': {'generators.mlp.width': 8}},
    }""")  # fmt: skip
    assert len(points) == 12 and len({p.folder for p in points}) == 12
    assert points[0].labels == {"rdm.train.seed": 0, "losses.matching.objective": "mmd", "size": "small"}
    assert points[0].bindings == (
        "rdm.train.seed = 0",
        "losses.matching.objective = @objectives.mmd()",
        "generators.mlp.width = 4",
        "generators.mlp.depth = 1",
    )
    assert points[-1].name == "seed 2, objective sliced_wasserstein, size large"


def test_references_may_be_texts_and_labels_stay_distinct():
    axes = sweep.axes({"a": ["@objectives.mmd()", "median"], "b": ["@x/objectives.mmd()", "@y/objectives.mmd()"]})
    assert [v.label for v in axes["a"]] == ["mmd", "median"] and axes["a"][0].bindings == {"a": "@objectives.mmd()"}
    assert axes["a"][1].bindings == {"a": "'median'"}
    assert [v.label for v in axes["b"]] == ["x/mmd", "y/mmd"]
    assert [v.label for v in sweep.axes({"c": ["1", 1, None]})["c"]] == ["1", 1, "None"]


def test_the_hash_is_of_the_operative_configuration(at):
    chosen = "'losses.matching.objective': [@objectives.mmd(), @objectives.frechet()]"
    one, other, same, another = planned(at, f"{{'objectives.frechet.correction': [0, 1], {chosen}}}")
    assert one.folder == same.folder and other.folder != another.folder
    assert "objectives.frechet.correction = 0" in other.bindings and len(one.bindings) == 1, "mmd has no correction"
    spelled = planned(
        at, "{'losses.matching.population': [8]}", more="# a comment\nobjectives.mmd.estimator = 'biased'"
    )
    assert spelled[0].folder == one.folder, "defaults written out are the same point"
    assert planned(at, "{'optimizers.adam.lr': [0.1, 0.2]}")[0].folder != one.folder
    first, second = planned(at, "{'optimizers.adam.lr': [0.1, 0.2]}")
    assert first.folder != second.folder
    config.load(at / "s.gin", first.bindings)
    config.plan()
    assert sweep.digest({}, config.operative())[:16] == first.folder.name


@pytest.mark.parametrize(
    "grid, message",
    [
        ("{'losses.matching.popluation': [8]}", "did you mean 'population'"),
        ("{'rdm.train.seed': [0], 'generators.mpl.width': [8]}", "point 'seed 0, width 8'.*mean 'generators.mlp'"),
        ("{'losses.matching.objective': [@objectives.mmd(), @objectives.mdm()]}", "did you mean 'objectives.mmd'"),
        ("{'a': {'b': {'objectives.mmd.bandwith': 1.0}}}", "did you mean 'bandwidth'"),
        ("{'objectives.mmd.bandwidth': [1.0, -1.0]}", "bandwidth -1.0.*must be a number from"),
        ("{'rdm.train.steps': [2, None]}", "point 'steps None'.*rdm.train.steps must be a whole number"),
        ("{'rdm.train.seed': [0, 'x']}", "point \"seed 'x'\".*|rdm.train.seed must be a whole number"),
        ("{'memories.ema.decay': [0.5, 0.9]}", "no point of rdm.sweep.grid reads memories.ema.decay"),
        ("{'rdm.train.seed': []}", "'rdm.train.seed' of rdm.sweep.grid has no values"),
        ("{'rdm.train.seed': 3}", "must be a list of values.*got 3"),
        ("{'a': {'b': 3}}", "must be a list of values"),
        ("{'a': {'b': {'rdm.train.seed': 1}}, 'rdm.train.seed': [0]}", "'a' and 'rdm.train.seed' both bind"),
        ("{}", "must bind rdm.sweep.grid"),
    ],
)  # fmt: skip
def test_wrong_grids_are_refused_before_anything_runs(at, grid, message, capsys):
    with pytest.raises(InputError, match=message):
        planned(at, grid)
    assert main(["sweep", "s.gin", "--out", "out"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (at / "out").exists()


def test_wrong_arguments(at, capsys):
    assert main(["sweep", "base.gin"]) == 2
    assert "must bind rdm.sweep.grid" in capsys.readouterr().err
    (at / "s.gin").write_text("include 'base.gin'\n" + SEEDS)
    assert main(["sweep", "s.gin", "--workers", "0"]) == 2
    assert "--workers must be" in capsys.readouterr().err
    (at / "i.gin").write_text("import os\ninclude 'base.gin'\n" + SEEDS)
    assert main(["sweep", "i.gin", "--restricted"]) == 2
    assert "refuses 'import os'" in capsys.readouterr().err


# Running


@pytest.mark.slow  # four processes
def test_points_run_once_failed_ones_again_and_a_longer_grid_keeps_both(at):
    """The second point dies of a learning rate that makes the gradient infinite."""
    grid = "include 'base.gin'\nrdm.train.steps = 20\nrdm.sweep.grid = {'optimizers.adam.lr': [1e-3, 1e30]}\n"
    (at / "s.gin").write_text(grid)
    process, out = begun(at, "--workers", "2"), at / "out"
    _, said = process.communicate()
    assert process.returncode == 1 and "lr 1e+30: FAILED: Diverged: step" in said
    assert "1 of 2 points failed" in said.splitlines()[-1] and "tries them again" in said
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert rows[1]["error"].startswith("Diverged: step") and rows[1]["recall"] == ""
    before = results(out)
    ((name, content),) = before.items()
    assert json.loads(content)["config_sha256"].startswith(name)
    (failed,) = [p for p in (out / "points").iterdir() if (p / "error.txt").exists()]
    (failed / "error.txt").write_text("stale")
    (at / "s.gin").write_text(grid.replace("1e30]", "1e30, 2e-3]"))
    process = begun(at)
    _, said = process.communicate()
    assert process.returncode == 1 and "1 of 3 points are finished already" in said
    assert "Diverged" in (failed / "error.txt").read_text(), "tried again"
    assert len(results(out)) == 2 and results(out)[name] == content
    assert [row.status for row in read_sweep(out).rows] == ["done", "failed", "done"]


def test_a_point_in_another_process_hands_is_left_to_it(at):
    (at / "s.gin").write_text("include 'base.gin'\n" + SEEDS)
    first, second = sweep.plan(Path("s.gin"), at / "out")
    held = lock(first.folder / "lock")
    assert held is not None and lock(first.folder / "lock") is None
    work = sweep._Work(Path("s.gin"), engines.build("local"), False, [first], total=1)
    said = []
    work.start(type("Report", (), {"say": said.append, "update": lambda *a: None}))  # type: ignore[arg-type]
    assert work.waiting == [first] and not work.running and "another sweep" in said[0]
    write_json(first.folder / "result.json", {})
    os.close(held)
    work.start(type("Report", (), {"say": said.append, "update": lambda *a: None}))  # type: ignore[arg-type]
    assert not work.waiting and not work.running and work.done == 1, "finished meanwhile, not run again"
    assert lock(second.folder / "lock") is not None


def test_what_a_point_said_last(at):
    point = sweep.Point({}, (), at)
    (at / sweep.OUTPUT).write_text("rdm: warning: a\nrdm: Diverged: b\n")
    assert sweep._last_error(point, 1) == "Diverged: b" and sweep._last_error(point, -9) == "killed by SIGKILL"
    (at / sweep.OUTPUT).write_text("")
    assert sweep._last_error(point, 3) == "exit status 3 without a word"


@pytest.mark.slow
def test_stopped_in_the_middle_then_finished(at):
    """By Ctrl-C, SIGTERM and kill -9 in turn: no point runs twice, no step is lost, an interruption is no failure."""
    grid = SEEDS.replace("1]", "1, 2, 3]")
    (at / "s.gin").write_text(f"include 'base.gin'\nrdm.train.steps = 600\nrdm.train.checkpoint_every = 20\n{grid}")
    out, before = at / "out", {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = begun(at)
        count = len(before)
        processes.until(lambda n=count: n < len(results(out)) < len(list(out.glob("points/*/log.jsonl"))), process)
        process.send_signal(number)
        _, said = process.communicate()
        after = results(out)
        assert len(before) < len(after) < 4 and {name: after[name] for name in before} == before
        before = after
        if number != signal.SIGKILL:
            assert process.returncode == 130 and "interrupted with" in said.splitlines()[-1]
            folders = [p for p in (out / "points").iterdir() if (p / "config.gin").exists() and p.name not in before]
            assert ["checkpoint in" in (p / "output.txt").read_text() for p in folders] == [True]
    assert not list(out.glob("points/*/error.txt"))
    process = begun(at, "--workers", "2")
    printed, said = process.communicate()
    assert process.returncode == 0 and "out/report.html" in printed and "sweep.csv" in printed
    assert f"{len(before)} of 4 points are finished already" in said
    after = results(out)
    assert len(after) == 4 and {name: after[name] for name in before} == before
    for folder in (out / "points").iterdir():
        steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert steps == list(range(10, 601, 10)), "no step lost or taken twice"


# Tables


def make(folder: Path) -> Path:
    """A finished sweep on paper: score rises with size under b and falls under a; one point failed."""
    points = []
    for objective in "ab":
        for size in (32, 256):
            for seed in (0, 1):
                place = f"points/{objective}{size}{seed}"
                labels = {"objective": objective, "losses.matching.population": size, "rdm.train.seed": seed}
                points.append({"labels": labels, "bindings": [], "folder": place})
                if (objective, size, seed) == ("a", 256, 1):
                    write_text(folder / place / "error.txt", "Diverged: <step> 3\n")
                    continue
                value = seed + (size if objective == "b" else -size)
                metrics = {
                    name: Metric(v, v - 1, v + 1, 10, seed)._asdict()
                    for name, v in (("score", value), ("distance", -value), ("near", value), ("other: score", 7.0))
                }
                write_json(folder / place / "result.json", {"metrics": metrics, "seconds": 2.5})
    axes = ["objective", "losses.matching.population", "rdm.train.seed"]
    goals = {"score": "inf", "near": "33.0"}
    write_json(folder / "sweep.json", {"file": "s.gin", "axes": axes, "goals": goals, "points": points})
    return folder


def test_the_csv_has_a_row_a_point(tmp_path):
    rows = list(csv.DictReader(write_csv(make(tmp_path)).read_text().splitlines()))
    assert len(rows) == 8
    assert rows[0] == {
        "objective": "a", "losses.matching.population": "32", "rdm.train.seed": "0", "status": "done",
        "seconds": "2.5", "score": "-32", "score low": "-33", "score high": "-31", "distance": "32",
        "distance low": "31", "distance high": "33", "near": "-32", "near low": "-33", "near high": "-31",
        "other: score": "7.0", "other: score low": "6.0", "other: score high": "8.0", "folder": "points/a320",
        "error": "",
    }  # fmt: skip
    assert rows[3]["status"] == "failed" and rows[3]["error"] == "Diverged: <step> 3" and rows[3]["score"] == ""


def test_seeds_become_a_mean_with_students_interval(tmp_path):
    lines = read_sweep(make(tmp_path)).summary()
    assert [line.labels for line in lines] == [("a", 32), ("a", 256), ("b", 32), ("b", 256)]
    half = 12.7062 * 0.5  # Student's quantile at one degree of freedom, times the error of a mean of two
    assert lines[0].cells["score"][:3] == pytest.approx((-31.5, -31.5 - half, -31.5 + half), rel=1e-5)
    assert lines[1].cells["score"] == Metric(-256, -257, -255, 10, 0), "of a single one its own"
    assert (len(lines[1].done), len(lines[1].rows)) == (1, 2)


def scored(*values: tuple[float, float, float]) -> Found:
    rows = [Row((k,), "", "done", "", 1.0, {"m": Metric(*each, 1, 0)}) for k, each in enumerate(values)]
    return Found(["a"], {}, rows)


@pytest.mark.parametrize("goal, marks", [
    (-math.inf, {0: "best", 1: "tie"}),
    (math.inf, {1: "tie", 2: "best", 3: "tie"}),
    (4.4, {1: "tie", 2: "best", 3: "tie"}),
    (math.nan, {}),
])  # fmt: skip
def test_the_best_is_by_direction_and_what_its_interval_does_not_tell_apart_is_marked(goal, marks):
    found = scored((1, 0.5, 2), (2, 1.5, 3.9), (4.5, 3.5, 5.5), (4.2, 3.1, 5))
    found = Found(found.axes, {"m": goal}, found.rows)
    assert found.marks(found.summary(), "m") == marks


@pytest.mark.parametrize("values", [[(0, 0, 0)] * 2, [(1, 0, 3), (2, 1, 4)], [(1, math.nan, math.nan)]])
def test_where_nothing_is_told_apart_nothing_is_the_best(values):
    found = scored(*values)
    assert found.marks(found.summary(), "m") == {} and found.seed is None


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal_with_names_and_cells_whole(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_summary(make(tmp_path))
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line[:2] != "*:"]
    assert all(len(line) <= columns for line in table)
    assert "-256.0 [-257.0, -255.0]" in printed and printed.count("near") == printed.count("distance") >= 1
    assert "other" in printed and "7.0 [6.0, 8.0]" in printed, "what it is compared with has its column"
    assert "a, 256: 1 of 2 done; failed: Diverged: <step> 3" in printed
    print_summary(tmp_path, ["near"])
    assert "distance" not in capsys.readouterr().out
    with pytest.raises(InputError, match="--metrics: expected some of score, distance, near; got 'fd'"):
        print_summary(tmp_path, ["fd"])


def test_a_sweep_whose_points_all_failed_says_so_on_a_line_each(tmp_path, capsys):
    points = [{"labels": {"kind": x}, "bindings": [], "folder": f"points/{x}"} for x in "ab"]
    write_json(tmp_path / "sweep.json", {"file": "s.gin", "axes": ["kind"], "goals": {}, "points": points})
    write_text(tmp_path / "points" / "a" / "error.txt", "Diverged\n")
    print_summary(tmp_path)
    assert capsys.readouterr().out.splitlines() == ["a: 0 of 1 done; failed: Diverged", "b: 0 of 1 done"]


def test_the_time_left_is_that_of_the_points_so_far(monkeypatch):
    """Also where two of them ended one after the other, as those of two workers do."""
    clock = [100.0]
    monkeypatch.setattr("rdm.app.sweep.time.monotonic", lambda: clock[0])
    points = [Point({"k": k}, (), Path(f"points/{k}")) for k in range(6)]
    work = _Work(Path("s.gin"), engines.build("local", workers=2), False, points[4:], 6)
    assert work.left() is None
    work.took = [100.0, 104.0]
    work.began = {point.folder: 70.0 for point in points[2:4]}
    work.running = list(zip(points[2:4], ("x", "y"), strict=True))  # type: ignore[arg-type]
    assert work.left() == 72 + 102, "two run since 30 s, two wait, one for each worker"
    clock[0] = 400.0
    work.waiting = []
    assert work.left() == 0, "they take longer than those before"


def test_the_report_of_a_sweep_whose_first_point_was_interrupted(tmp_path):
    """One point of all has a log: its curve is that of the point."""
    make(tmp_path)
    place = json.loads((tmp_path / "sweep.json").read_text())["points"][0]["folder"]
    rows = [{"step": k, "loss": 1.0 / k, "distance/pixels": 2.0 / k} for k in (10, 20)]
    write_text(tmp_path / place / "log.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    page = write_sweep_report(tmp_path).read_text()
    assert "distance/pixels" in page and "Nothing was logged" not in page


def test_reports_of_sweeps_without_numbers_results_or_metrics(tmp_path):
    for labels, metrics in ((["x", "y"], {"m": Metric(1.0, 0.0, 2.0, 1, 0)._asdict()}), (["x"], {}), ([3], None)):
        folder = tmp_path / str(len(labels)) / str(metrics is None)
        points = [{"labels": {"kind": x}, "bindings": [], "folder": f"points/{x}"} for x in labels]
        for x in labels if metrics is not None else []:
            write_json(folder / "points" / str(x) / "result.json", {"metrics": metrics, "seconds": 1.0})
        write_json(folder / "sweep.json", {"file": "s.gin", "axes": ["kind"], "goals": {}, "points": points})
        page = write_sweep_report(folder).read_text()
        assert ("Nothing to draw" in page) == (not metrics) and "</html>" in page
        print_summary(folder)
        assert write_csv(folder).exists()


def test_an_unknown_engine_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "missing.gin"), "--engine", "rey"]) == 2
    assert capsys.readouterr().err.strip() == "rdm: unknown engine 'rey'; did you mean 'ray'?"
