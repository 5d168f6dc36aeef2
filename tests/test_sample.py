"""Items of a generator by number, and `rdm sample`: the same for any number of items, batches, ranks and kills."""

import json
import os
import subprocess
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import rdm
from rdm.__main__ import main
from rdm.app import sampling
from rdm.app.sampling import generator_of, sample_run
from rdm.data.source import open_source
from rdm.errors import InputError, Interrupted
from rdm.generators.protocol import Generator
from rdm.judging.drawing import BLOCK, Drawing, in_steps
from rdm.judging.evaluation import Evaluation

ROOT = Path(__file__).parent.parent
RUN = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 2
generators.mlp_flow.width = 8
"""
SPIRAL = """
rdm.train.model = @generators.mlp()
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.spiral()
rdm.train.steps = 2
losses.matching.objective = @objectives.mmd()
losses.matching.battery = @rdm.battery()
losses.matching.population = 8
rdm.battery.members = [@representations.identity()]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    (folder / "g.gin").write_text(RUN)
    assert main(["train", str(folder / "g.gin"), "--out", str(folder / "run")]) == 0
    return folder / "run"


class Echo(Generator):
    """Gives back its noise, and remembers how much of it at a time."""

    shape, classes = (3,), 4

    def __init__(self):
        super().__init__()
        self.scale, self.largest = torch.nn.Parameter(torch.ones(())), 0

    def forward(self, noise, condition=None):
        self.largest = max(self.largest, len(noise))
        return noise * self.scale


def drawn(total: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    drawing = Drawing(Echo(), total, **options)
    with drawing.read(range(len(drawing))) as batches:
        found = list(batches)
    return torch.cat([batch.values for batch in found]), torch.cat([batch.labels for batch in found])


def test_an_item_follows_from_seed_and_number_alone():
    items, labels = drawn(1000)
    for total, batch in ((1, 1), (63, 64), (130, 7)):
        some, classes = drawn(total, batch=batch)
        assert torch.equal(some, items[:total]) and torch.equal(classes, labels[:total])
    assert not torch.equal(drawn(64, seed=1)[0], items[:64])
    assert len(items.unique()) == 3000 and set(labels.tolist()) == {0, 1, 2, 3}
    assert drawn(5, condition=[3, 1])[1].tolist() == [3, 1, 3, 1, 3]
    assert Drawing(Echo(), 1000).shape == [3]


def test_only_a_batch_is_drawn_at_a_time():
    drawing = Drawing(Echo(), 200, batch=10)
    for k in range(len(drawing)):
        assert len(drawing.block(k).images) <= BLOCK
    assert drawing.generator.largest == 10
    few = Drawing(Echo(), 3, batch=2)
    assert len(few.block(0).images) == 3 and few.generator.largest == 2


def test_every_form_holds_the_same_pictures(run, tmp_path):
    floats = [Drawing(generator_of(run), 70, 3).block(k) for k in (0, 1)]
    pictures = torch.cat([block.images[:, 0] for block in floats]).mul(255).round().byte().numpy()
    labels = torch.cat([block.labels for block in floats]).tolist()
    for name in ("folder", "a.tar", "a.npz"):
        assert main(["sample", str(run), "--n", "70", "--seed", "3", "--out", str(tmp_path / name)]) == 0
        source = open_source(tmp_path / name)
        order = sorted(range(70), key=lambda i: source.name(i)[-10:]) if name == "folder" else range(70)  # by class
        assert len(source) == 70 and [source.label(i) for i in order] == labels, name
        assert np.array_equal(np.stack([source.read(i).reshape(8, 8) for i in order]), pictures), name
    assert not list(tmp_path.glob(".*"))


def test_steps_and_classes_are_those_asked_for(run, tmp_path):
    for name, more in (("one", ["--steps", "1"]), ("four", ["--steps", "4", "--condition", "all"])):
        assert main(["sample", str(run), "--n", "12", "--out", str(tmp_path / f"{name}.npz"), *more]) == 0
    one, four = (np.load(tmp_path / f"{name}.npz") for name in ("one", "four"))
    assert four["labels"].tolist() == [*range(10), 0, 1] and one["labels"].tolist() != four["labels"].tolist()
    assert not np.array_equal(one["images"], four["images"])


def test_an_interrupted_call_is_gone_on_with(run, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.npz", tmp_path / "x.npz"
    sample_run(run, whole, n=200)
    block, calls = Drawing.block, []

    def stopping(self, number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return block(self, number)

    monkeypatch.setattr(Drawing, "block", stopping)
    with pytest.raises(KeyboardInterrupt):
        sample_run(run, out, n=200)
    monkeypatch.setattr(Drawing, "block", block)
    kept = sorted((tmp_path / ".x.npz.partial").glob("0*"))
    assert kept and not out.exists()
    kept[0].write_bytes(kept[0].read_bytes()[:-5])  # damaged meanwhile
    with pytest.raises(InputError, match="was begun with seed 0; now 1"):
        sample_run(run, out, n=200, seed=1)
    sample_run(run, out, n=200)
    assert all(np.array_equal(np.load(out)[key], np.load(whole)[key]) for key in ("images", "labels"))


def test_a_stop_between_blocks_keeps_what_is_drawn(run, tmp_path, monkeypatch):
    asked = sampling.stop_requests(together=False)
    with asked as stop:
        assert not stop()
        os.kill(os.getpid(), 15)
        assert stop()
    monkeypatch.setattr(sampling, "stop_requests", lambda together: nullcontext(lambda: True))
    with pytest.raises(Interrupted, match=r"\.y\.npz\.partial keeps what is drawn"):
        sample_run(run, tmp_path / "y.npz", n=200)


@pytest.mark.slow
def test_two_ranks_draw_what_one_does(run, tmp_path):
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rdm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = ["sample", str(run), "-n", "300", "--out"]  # torchrun takes --n for one of its own
    assert main([*command, str(tmp_path / "one.tar")]) == 0
    subprocess.run([*head, *command, str(tmp_path / "two.tar")], env=environment, check=True, timeout=200)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert len(tar.getnames()) == 600, "a picture and its class each"


def test_points_are_kept_as_rows(tmp_path):
    (tmp_path / "g.gin").write_text(SPIRAL)
    assert main(["train", str(tmp_path / "g.gin"), "--out", str(tmp_path / "run")]) == 0
    with pytest.raises(InputError, match=r"items of shape \[64\] are no pictures .*; give --out FILE.npz"):
        sample_run(tmp_path / "run", tmp_path / "folder", n=9)
    sample_run(tmp_path / "run", tmp_path / "x.npz", n=9)
    rows = np.load(tmp_path / "x.npz")["features"]
    assert rows.shape == (9, 64) and rows.dtype == np.float32 and rows.std() > 0


def test_a_published_generator_is_drawn_without_a_run(tmp_path, monkeypatch, capsys):
    """By its name, its public file and the sampling of its preset, or what is asked for instead."""
    small = {"size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "bottleneck": 4, "context": 3, "start": 1}
    model = rdm.generator("jit_b_256", **small)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 10)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    given = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    command = ["sample", "jit_b_256", "--n", "3", "--steps", "2", "--condition", "7"]
    assert main([*command, "--weights", "w.safetensors", *given, "--out", "a.npz"]) == 0
    expected = Drawing(in_steps(model.eval(), 2), 3, 0, [7]).block(0).images.permute(0, 2, 3, 1).mul(255).round()
    assert np.abs(np.load("a.npz")["images"].astype(float) - expected.numpy()).max() <= 1
    for arguments, message in (
        ([*command, "--weights", "w.safetensors"], "w.safetensors"),  # of another size
        ([*command, "--weights", "w.safetensors", "--set", "weight=3"], "weight"),
        (["sample", "jot", "--weights", "w.safetensors"], "--weights belongs to a generator's name"),
        ([*command, *given], "--set is of a published generator"),
        (command, "give its weights as --weights FILE"),
    ):
        capsys.readouterr()
        assert main([*arguments, "--out", "b.npz"]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("rdm: ") and message in line, line


def test_refusals_are_one_line(run, tmp_path, capsys):
    (tmp_path / "there.npz").write_bytes(b"")
    for arguments, message in (
        ([str(tmp_path), "--out", str(tmp_path / "x.npz")], "expected a run at"),
        ([str(run), "--out", str(tmp_path / "x.zip")], "expected --out FOLDER, FILE.tar or FILE.npz; got 'x.zip'"),
        ([str(run), "--out", str(tmp_path / "there.npz")], "there.npz exists already; give another --out"),
        ([str(run), "--out", str(tmp_path / "x.npz"), "--n", "0"], "--n must be a"),
        ([str(run), "--out", str(tmp_path / "x.npz"), "--condition", "10"], "expected classes from 0 to 9; got 10"),
        ([str(run), "--out", str(tmp_path / "x.npz"), "--condition", "cat"], "condition takes classes as '3,5'"),
        ([str(run), "--out", str(tmp_path / "x.npz"), "--steps", "0"], "--steps must be a"),
    ):
        capsys.readouterr()
        assert main(["sample", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("rdm: ") and message in line, line
        assert not list(tmp_path.glob(".*"))


def test_a_run_and_its_samples_score_the_same(run, tmp_path):
    """From one file; the samples as floats, since 8 bits are another thing to measure."""
    digits = rdm.dataset("digits", split="all").images
    np.save(tmp_path / "digits.npy", digits[:, 0].numpy())
    reference = str(tmp_path / "r.safetensors")
    assert main(["reference", str(tmp_path / "digits.npy"), "--battery", "untrained", "--out", reference]) == 0
    drawing = Drawing(generator_of(run), 150, 5)
    with drawing.read(range(len(drawing))) as batches:
        np.save(tmp_path / "made.npy", torch.cat([batch.values for batch in batches])[:, 0].numpy())
    found = []
    for samples in ([str(run), "--n", "150"], [str(tmp_path / "made.npy")]):
        command = ["evaluate", *samples, "--reference", reference, "--seed", "5", "--json", str(tmp_path / "v.json")]
        assert main(command) == 0
        found.append(json.loads((tmp_path / "v.json").read_text())["metrics"])
    judge = Evaluation(reference, seed=5, n=150, compare={"other": generator_of(run)})
    evaluated = judge(generator_of(run))
    assert {name: metric._asdict() for name, metric in evaluated.items() if ": " not in name} == found[0]
    assert evaluated["other: fd/pixels"] == evaluated["fd/pixels"] and len(judge.pictures(generator_of(run))) == 2
    assert found[0].keys() == found[1].keys() and found[0]["fd/pixels"]["n"] == 150
    for name, metric in found[0].items():
        assert metric["value"] == pytest.approx(found[1][name]["value"], rel=1e-5, abs=1e-7), name
