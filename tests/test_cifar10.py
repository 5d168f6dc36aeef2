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
from experiments.cifar10.__main__ import JUDGES, RATIOS, TRAINED, Found, as_csv, curves, pictures, table
from rdm.__main__ import main
from rdm.app import config
from rdm.app.sweep import axes
from rdm.matching.metric import Metric
from tests.shared_data import folder

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "experiments" / "cifar10"


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
    logged = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    assert logged["step"] == 2 and 0 < logged["gradient_share/mobilenetv1_025"] < 1
