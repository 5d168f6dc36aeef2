"""Gaming: pictures that are free weights, with untrained networks, and the study's own files with few pictures."""

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.gaming import __main__ as gaming
from rdm.__main__ import main
from rdm.matching.metric import Metric
from rdm.registry import generators
from tests.shared_data import folder

STUDY = Path(__file__).parent.parent / "experiments" / "gaming"
FREE = """
import experiments.gaming.free

rdm.train.model = @generators.free_pictures()
generators.free_pictures.data = @datasets.files()
datasets.files.path = 'real.npz'
generators.free_pictures.count = 40
generators.free_pictures.start = 'noise'
rdm.train.losses = [@losses.matching()]
rdm.train.steps = 40
rdm.train.samples_every = None
rdm.train.monitors = [@monitors.fresh()]
rdm.train.optimizer = @optimizers.adam
optimizers.adam.lr = 0.1
losses.matching.objective = @objectives.mmd()
losses.matching.battery = @rdm.battery()
losses.matching.reference = 'real.safetensors'
losses.matching.population = 40
rdm.battery.members = [@representations.random_convolutions()]
rdm.battery.held_out = [@representations.pixels(), @representations.pca(), @other/representations.random_convolutions()]
representations.pca.components = 16
representations.random_convolutions.channels = None
other/representations.random_convolutions.seed = 1
other/representations.random_convolutions.name = 'held_out_convolutions'
rdm.train.evaluation = @rdm.evaluation()
rdm.evaluation.reference = 'real.safetensors'
rdm.evaluation.battery = @rdm.battery()
rdm.evaluation.metrics = ['mmd_r']
rdm.evaluation.n = 40
rdm.evaluation.condition = 'all'
monitors.fresh.objective = @objectives.mmd()
monitors.fresh.battery = @rdm.battery()
monitors.fresh.reference = 'real.safetensors'
monitors.fresh.population = 40
monitors.fresh.every = 20
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """The study's generator is registered by a file that names it, for the time of one test."""
    monkeypatch.delitem(sys.modules, "experiments.gaming.free", raising=False)
    with generators.temporarily():
        yield


@pytest.mark.filterwarnings("default:gaming alarm")
def test_free_pictures_under_one_encoder_go_below_the_real_floor_and_are_warned_of(tmp_path, monkeypatch, capsys):
    """Untrained networks are enough: one is pleased beyond real data, others are not, and both alarms say so."""
    monkeypatch.chdir(tmp_path)
    made = ["--battery", "untrained", "--split", "0.5", "--sample", "60", "--out", "real.safetensors"]
    tiles = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 3), np.uint8)
    np.savez("real.npz", images=tiles.repeat(2, 1).repeat(2, 2))
    assert main(["reference", "real.npz", *made]) == 0
    Path("free.gin").write_text(FREE)
    assert main(["train", "free.gin", "--out", "run"]) == 0
    said = capsys.readouterr().err
    assert said.count("the loss may be gamed") == said.count("gaming alarm: mmd_r") == 1
    logged = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    ratios = {name: logged[f"fresh_ratio/{name}"] for name in ("random_convolutions", "pca", "held_out_convolutions")}
    assert ratios.pop("random_convolutions") < 0.2 and min(ratios.values()) > 1.5
    asked = "--reference real.safetensors --metrics mmd_r -n 40 --condition all --trust-config --json verdict.json"
    assert main(["evaluate", "run", *asked.split()]) == 0  # every picture once, as the run's own evaluation
    found = [json.loads(Path(name).read_text())["metrics"] for name in ("run/result.json", "verdict.json")]
    one, other = (each["mmd_r/random_convolutions"]["value"] for each in found)
    assert one == other < 0.2


def test_gaming_is_drawn_and_told_by_encoder(tmp_path):
    def run(name: str, seed: int, trained: str, warned: str) -> gaming.Run:
        of = {f"sw_r/{m}": Metric(0.1 + seed + (m != trained), 0, 9, 8, 0) for m in gaming.ENCODERS}
        ratios = {f"fresh_ratio/{m}": of[f"sw_r/{m}"].value for m in gaming.ENCODERS}
        rows = [{"step": 1, **dict.fromkeys(ratios, 1.5)}, {"step": 2, **ratios}]
        folder = tmp_path / f"{name} {seed}"
        (folder / "samples").mkdir(parents=True)
        (folder / "output.txt").write_text(f"1/2\n{warned}\n")
        Image.new("RGB", (340, 210)).save(folder / "samples" / gaming.SHOWN)
        return gaming.Run(name, seed, of, [*rows, {"step": 2, f"distance/{trained}": 0.1}], folder)

    said = "after step 2: the loss may be gamed: samples are nearer"
    runs = [run("start", 0, "squeezenet", ""), run("a", 0, "squeezenet", said), run("a", 1, "squeezenet", "")]
    first, second = gaming.table(runs, "mmd_r").splitlines()[2:]
    assert gaming.table(runs, "sw_r") == gaming.table(runs, "mmd_r")
    assert first.startswith("| start | 1 | 1.1 |") and first.endswith("| 0.1 | 0.33 | - |")  # sqrt(0.1 * 1.1)
    assert second.startswith("| a | 2 | 1.6 ± 0.5 |") and second.endswith(
        "| **0.6 ± 0.5** | 0.93 ± 0.6 | 2, - |"
    )  # (0.33 + 1.52) / 2
    lines = gaming.as_csv(runs).splitlines()
    assert len(lines) == 1 + 3 * 6 * 3 and "a,0,squeezenet,1,sw_r,2,0.1,0,9" in lines
    assert "a,1,mobilenetv1_025,0,mmd_r,1,1.5,," in lines
    assert Image.open(io.BytesIO(gaming.pictures(runs))).size == (660, 160)
    assert Image.open(io.BytesIO(gaming.curves(runs))).width > 300


def test_the_pages_quote_the_study():
    """What judges that never train end at, from the table of every run."""
    with (STUDY / "tables.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "mmd_r" and row["encoder"] in gaming.APART]
    last = {(row["run"], row["seed"], row["encoder"]): float(row["value"]) for row in rows}  # of the last step
    page, docs = (STUDY / "README.md").read_text(), (STUDY.parents[1] / "docs" / "batteries.md").read_text()
    quoted = {}
    for run in dict.fromkeys(row["run"] for row in rows):
        seeds = [math.sqrt(math.prod(last[run, seed, encoder] for encoder in gaming.APART)) for seed in "012"]
        quoted[run] = f"{sum(seeds) / 3:.1f} ± {(max(seeds) - min(seeds)) / 2:.1f}"
    assert len(quoted) == 7 and all(text in page for run, text in quoted.items() if run != "start"), quoted
    assert all(quoted[run] in docs for run in ("one encoder", "two", "four"))


@pytest.mark.slow
def test_the_study_runs_shrunk(tmp_path, monkeypatch):
    """Its own file with few pictures of the test split, which are real ones, start and data at once."""
    data = folder("imagenet_encoders").parent / "cifar10" / "test_jpeg.npz"
    monkeypatch.chdir(tmp_path)
    file = "runs/cifar10/reference.safetensors"
    with np.load(data) as held:
        ends = held["offsets"][:81]
        np.savez("few.npz", data=held["data"][: ends[-1]], offsets=ends, labels=held["labels"][:80])
    measured = ["--battery", "mobile", "--set", "size=48", "--split", "0.4", "--sample", "48", "--out", file]
    assert main(["reference", "few.npz", *measured]) == 0
    few = "generators.free_pictures.count losses.matching.population monitors.fresh.population rdm.evaluation.n".split()
    few = "".join(f"{name} = 8\n" for name in few)
    grid = (
        "rdm.sweep.grid = {'rdm.train.seed': [0], 'run': {'one': {'batteries.mobile.training': ['mobilenetv1_025']}}}"
    )
    Path("gaming.gin").write_text(f"include '{STUDY / 'gaming.gin'}'\n{few}rdm.train.steps = 5\n{grid}\n")
    assert main(["sweep", "gaming.gin", "--out", "gaming"]) == 0
    (one,) = gaming.runs_in(Path("gaming"))
    assert one.trained == ["mobilenetv1_025"] and [len(one.curve(m)) for m in gaming.ENCODERS] == [1] * 6
