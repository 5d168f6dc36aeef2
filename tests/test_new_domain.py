"""The guide for a new domain runs as printed, and its samples come out in the order that it says."""

import json
import re
import shlex
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import rdm
from rdm.__main__ import main
from rdm.files.checkpoint import load_weights
from rdm.randomness import seeded
from rdm.registry import networks
from tests.shared_data import folder

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "new_domain.md").read_text()
SETS = "clean", "noisy", "pitch", "one_speaker"  # the best first


def test_the_recordings_are_packed_as_the_data_set_reads_them(tmp_path, monkeypatch):
    spoken = {("0", "theo", "3"): [1, -32768], ("1", "ann", "49"): [5], ("7", "theo", "12"): [7, 8, 9]}
    for (digit, speaker, take), sound in spoken.items():
        with wave.open(str(tmp_path / f"{digit}_{speaker}_{take}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.array(sound, "<i2").tobytes())
    (program,) = re.findall(r"```py\n(.*?)```", GUIDE, re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pack.py", str(tmp_path)])
    exec(program, {})
    monkeypatch.setenv("RDM_DATA", str(tmp_path / "data"))
    held = rdm.dataset("spoken_digits", split="all", length=3)
    assert {(int(c), *map(int, 32768 * x)) for c, x in zip(held.labels, held.images, strict=True)} == {
        (0, 1, -32768, 0), (1, 5, 0, 0), (7, 7, 8, 9)
    }  # fmt: skip
    assert len(rdm.dataset("spoken_digits", takes=(12, 13), speakers=["theo"]).images) == 1


@pytest.mark.slow
def test_the_guide_runs_and_ranks_its_samples(tmp_path, monkeypatch):
    folder("fsdd")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", "experiments")
    names: dict = {}
    for kind, block in re.findall(r"```(python|console)\n(.*?)```", GUIDE, re.S):
        if kind == "python":
            with seeded(0):
                exec(block, names)
            continue
        for line in block.strip().splitlines():
            program, *arguments = shlex.split(line)
            assert program == "rdm" and main(arguments) == 0, line
    found = {name: json.loads(Path(f"{name}.json").read_text())["metrics"] for name in SETS}
    for metric in ("fdr", "sw_r", "mmd_r"):
        means = [found[name][f"{metric}/mean of 3"] for name in SETS]
        assert [m["value"] for m in means] == sorted(m["value"] for m in means), metric
        assert means[0]["low"] <= 1 <= means[0]["high"] and means[3]["low"] > means[1]["value"], metric
        assert re.search(rf"\| {metric} +\|", GUIDE), "the table has a row for it"
    the_networks_know_the_recordings_that_nobody_trained_on()


def the_networks_know_the_recordings_that_nobody_trained_on() -> None:
    """The official test split, five takes of all speakers; and every encoder sees that digits are missing."""
    test, train = rdm.dataset("spoken_digits", split="test"), rdm.dataset("spoken_digits")
    folders = {name: f"runs/spoken_digits/{name}" for name in ("encoder", "judge")}
    for name, network in (("encoder", "spectrogram_classifier"), ("judge", "waveform_classifier")):
        module = networks.build(network)
        load_weights(module, folders[name])
        with torch.no_grad():
            logits = torch.cat([module.eval()(x) for x in test.images.split(100)])
        assert (logits.argmax(1) == test.labels).double().mean() > 0.93, name
    battery = rdm.battery("spoken_digits", **folders)
    for each in (*battery.members, *battery.held_out):
        real, other, target = map(each, (test.images, test.images[test.labels < 3], train.images[::9]))
        assert rdm.distance("mmd", real, target) < rdm.distance("mmd", other, target), each.name


def test_the_guide_names_what_exists():
    for path in re.findall(r"experiments/[\w/]+\.gin", GUIDE):
        assert (ROOT / path).exists(), path
