"""CIFAR-10: the data set, and the study's own files with a tiny network, few steps and few pictures."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rdm
from experiments.cifar10 import gaming
from experiments.cifar10.__main__ import JUDGES, RATIOS, TRAINED, Found, as_csv, curves, pictures, table
from rdm.__main__ import main
from rdm.app import config
from rdm.app.sweep import axes
from rdm.matching.metric import Metric
from tests.shared_data import folder

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "experiments" / "cifar10"


FREE = """
import experiments.cifar10.free

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


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder for RDM_DATA with 40 coloured pictures a split, and the encoders where there are any."""
    place, real = tmp_path / "data", Path(os.environ.get("RDM_DATA", "none")) / "imagenet_encoders"
    (place / "cifar10").mkdir(parents=True)
    if real.is_dir():
        (place / "imagenet_encoders").symlink_to(real)
    for seed, split in enumerate(("train", "test")):
        draw, files = np.random.default_rng(seed), list[bytes]()
        for _ in range(40):
            buffer = io.BytesIO()
            tiles = draw.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(tiles).save(buffer, "JPEG")
            files.append(buffer.getvalue())
        offsets, labels = np.cumsum([0, *map(len, files)]), np.arange(40) % 10
        whole = np.frombuffer(b"".join(files), np.uint8)
        np.savez(place / "cifar10" / f"{split}_jpeg.npz", data=whole, offsets=offsets, labels=labels)
    monkeypatch.setenv("RDM_DATA", str(place))
    return place


def test_the_data_set_is_both_splits(data):
    for split in ("train", "test"):
        found = rdm.dataset("cifar10", split=split)
        assert len(found) == 40 and found.name == f"cifar10/{split}" and found.labels.tolist() == [*range(10)] * 4
        (part,) = found.read([[3, 7]])
        with np.load(data / "cifar10" / f"{split}_jpeg.npz") as file:
            picture = np.asarray(
                Image.open(io.BytesIO(file["data"][file["offsets"][3] : file["offsets"][4]].tobytes()))
            )
        assert torch.equal((part.items[0] * 255).round().byte(), torch.tensor(picture).permute(2, 0, 1))
        assert part.labels.tolist() == [3, 7]


def test_tables_are_means_over_seeds_and_judges(tmp_path):
    def found(run: str, seed: int, scale: float) -> Found:
        of = {
            f"{r}/{m}": Metric(scale * (1 + (m == "squeezenet")), 1, 9, 8, 0) for r in RATIOS for m in TRAINED + JUDGES
        }
        log = tmp_path / run / f"{seed}" / "log.jsonl"
        (log.parent / "samples").mkdir(parents=True)
        log.write_text("".join(f'{{"step": {k}, "distance/mobilenetv1_025": {1 / k}}}\n' for k in (1, 2)))
        Image.new("RGB", (90, 70)).save(log.parent / "samples" / "compare 00 this run.png")
        return Found(run, seed, of, log)

    everything = [found("a", 0, 2.0), found("a", 1, 4.0), found("b", 0, 3.0)]
    first, second = table(everything, "sw_r").splitlines()[2:]
    assert first == "| a | 2 | 3 ± 1 | 3 ± 1 | 3 ± 1 | 3 ± 1 | 3 ± 1 | 6 ± 2 | 3.57 ± 1.2 |"  # 3 * 2 ** (1 / 4)
    assert second == "| b | 1 | 3 | 3 | 3 | 3 | 3 | 6 | 3.57 |"
    lines = as_csv(everything).splitlines()
    assert len(lines) == 1 + 3 * 2 * 6 and lines[1] == "a,0,sw_r,mobilenetv1_025,2,1,9,8"
    shown = Image.open(io.BytesIO(pictures(everything)))
    assert shown.size == (90, 160) and Image.open(io.BytesIO(curves(everything))).width > 300


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


@pytest.mark.slow
def test_the_study_runs_shrunk(data, tmp_path, monkeypatch):
    """Its own files with a tiny network and few pictures; kinds of run that bind different things are one."""
    folder("imagenet_encoders")
    monkeypatch.chdir(tmp_path)
    net = "generators.unet.channels = 4\ngenerators.unet.patch = 4\n"
    Path("flow.gin").write_text(f"include '{STUDY / 'flow.gin'}'\n{net}rdm.train.steps = 2\n")
    Path("study.gin").write_text(f"include '{STUDY / 'study.gin'}'\n{net}rdm.train.steps = 2\nrdm.evaluation.n = 8\n")
    file = "runs/cifar10/reference.safetensors"
    measured = ["--battery", "mobile", "--set", "size=48", "--split", "0.4", "--sample", "16", "--out", file]
    assert main(["train", "flow.gin", "--out", "runs/cifar10/flow"]) == 0
    assert main(["reference", str(data / "cifar10" / "test_jpeg.npz"), *measured]) == 0
    config.load(Path("study.gin"))
    kinds = {value.label: value.bindings for value in axes(config.grid())["run"]}
    chosen = kinds["frechet, average of 1216"] | kinds["mmd, one encoder"] | kinds["gradient_norm"]
    chosen |= {"losses.matching.population": "4", "losses.matching.chunk": "2", "losses.matching.warm_up": "4"}
    binds = [part for name, value in chosen.items() for part in ("--bind", f"{name} = {value}")]
    assert main(["train", "study.gin", *binds, "--out", "run"]) == 0
    found = json.loads(Path("run/result.json").read_text())["metrics"]
    assert {"sw_r/mean of 5 held out", "mmd_r/mean of 5 held out", "mmd_r/mobilenetv1_025"} <= set(found)
    few = "generators.free_pictures.count losses.matching.population monitors.fresh.population rdm.evaluation.n".split()
    few = "".join(f"{name} = 8\n" for name in few)
    grid = (
        "rdm.sweep.grid = {'rdm.train.seed': [0], 'run': {'one': {'batteries.mobile.training': ['mobilenetv1_025']}}}"
    )
    Path("gaming.gin").write_text(f"include '{STUDY / 'gaming.gin'}'\n{few}rdm.train.steps = 5\n{grid}\n")
    assert main(["sweep", "gaming.gin", "--out", "gaming"]) == 0
    (one,) = gaming.runs_in(Path("gaming"))
    assert one.trained == ["mobilenetv1_025"] and [len(one.curve(m)) for m in gaming.ENCODERS] == [1] * 6
    logged = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    assert logged["step"] == 2 and 0 < logged["gradient_share/mobilenetv1_025"] < 1


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
