"""What a run is watched by: trackers of its log, and monitors that leave training as it is."""

import contextlib
import io
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import rdm
from rdm.app.judging import make_reference
from rdm.distributed import world_size
from rdm.errors import InputError, RestrictedError
from rdm.generators.protocol import Generator, drawn
from rdm.monitors.fresh import Fresh
from rdm.monitors.spread import Spread
from rdm.numbers import ParameterError
from rdm.randomness import seeded, stream
from rdm.references.file import Reference
from rdm.registry import monitors, trackers
from rdm.training.loop import train
from rdm.training.loss import Loss, Setting
from rdm.training.run import Log
from rdm.trust import confined
from tests import processes
from tests.test_train import leaves, run, untimed

FLAT = rdm.Representation("flat", nn.Flatten())
PCA = rdm.representation("pca", components=8)
BATTERY = rdm.Battery((PCA,), held_out=(rdm.Representation("pixels", nn.Flatten()),))


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def watching() -> dict:
    fresh = monitors.build("fresh", objective=rdm.objective("frechet"), battery=BATTERY, population=90, every=3)
    return {"monitors": [fresh, monitors.build("spread", battery=BATTERY, groups=4, each=3, every=3)]}


def scalars(out: Path, name: str) -> dict[int, float]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_a_watched_run_is_the_same_run_resumed_or_not(tmp_path):
    """Parameters to the bit, with encoders and generators that draw from the global random state."""
    plainly = {"samples_every": 0}
    tracked = {**plainly, "trackers": [trackers.build("tensorboard")], **watching()}
    plain = run("ema", tmp_path / "plain", **plainly)
    whole = run("ema", tmp_path / "whole", **tracked)
    for a, b in zip(leaves(plain.state_dict()), leaves(whole.state_dict()), strict=True):
        assert torch.equal(a, b)
    logged = rows(tmp_path / "whole")
    assert [row["step"] for row in logged if "fresh/pca" in row] == [3, 6]
    assert {"fresh/pca", "fresh_held_out/pixels", "spread/pca", "spread/pixels", "distance/pca"} <= set(logged[2])
    assert "fresh_ratio/pca" not in logged[2]  # the reference is the data set, which has no fresh rows
    first = untimed(tmp_path / "plain")[2]
    assert first.items() <= logged[2].items()
    # Ended after step 5, the last checkpoint that of step 4.
    again = shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "00000006")
    other = trackers.build("tensorboard")
    other.start("", again, 4)
    other.log(5, {"loss": -1.0})
    other.finish()
    run("ema", again, resume=True, **plainly, **watching(), trackers=[trackers.build("tensorboard")])
    assert untimed(again) == untimed(tmp_path / "whole")
    assert scalars(again, "loss") == scalars(tmp_path / "whole", "loss")
    assert scalars(again, "spread/pca") == {row["step"]: pytest.approx(row["spread/pca"], rel=1e-6)
                                           for row in logged if "spread/pca" in row}  # fmt: skip


class Broken:
    def __init__(self, method: str):
        self.method, self.calls = method, []

    def _call(self, name):
        self.calls.append(name)
        if name == self.method:
            raise ConnectionError("nobody answers\nat all")

    def start(self, config, out, step):
        self.calls.append((config, out, step))
        self._call("start")

    def log(self, step, record):
        self._call("log")

    def finish(self):
        self._call("finish")


def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "config.gin").write_text("x = 1\n")
    each = [Broken(method) for method in ("start", "log", "finish", "")]
    log = Log(tmp_path / "log.jsonl", 0, each)
    for step in (1, 2):
        log.write({"step": step, "loss": 0.5})
    log.close()
    assert [broken.calls[1:] for broken in each] == [
        ["start"], ["start", "log"], ["start", "log", "log", "finish"], ["start", "log", "log", "finish"],
    ]  # fmt: skip
    assert each[3].calls[0] == ("x = 1\n", tmp_path, 0)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2] and log.first == {"step": 1, "loss": 0.5}
    shown = " ".join("".join(capsys.readouterr()).split())
    assert shown.count("the tracker Broken failed and gets no more rows: nobody answers; log.jsonl has all") == 3


def test_rows_and_lines_say_how_many_items_a_second(tmp_path, monkeypatch, capsys):
    """Since the row before, of this process; the line since it began."""
    clock = iter([10.0, 12.0, 16.0])
    with monkeypatch.context() as patched:
        patched.setattr("rdm.training.run.time.monotonic", lambda: next(clock))
        log = Log(tmp_path / "log.jsonl", 4, items=30)
        log.write({"step": 5})
        log.write({"step": 9})
    assert [row["items_per_second"] for row in rows(tmp_path)] == [30 / 2.0, 30 * 4 / 4.0]
    run("classification", tmp_path / "run", samples_every=0)
    assert all(0 < row["items_per_second"] < float("inf") for row in rows(tmp_path / "run"))
    assert re.search(r"6/6 .* \d[\d,]* items/s$", capsys.readouterr().err, re.M)


def test_what_is_missing_or_unfit_is_said_before_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'this tracker needs wandb; pip install "rdm-torch\[track\]"'):
        trackers.build("wandb")
    with pytest.raises(ParameterError, match="every must be"):
        monitors.build("spread", battery=BATTERY, every=0)
    with pytest.raises(ParameterError, match="trackers"):
        run("ema", tmp_path / "a", trackers=["tensorboard"])
    setting = Setting(rdm.dataset("digits"), 0, torch.device("cpu"), None)
    with pytest.raises(InputError, match="monitors.spread compares conditions"):
        Spread(BATTERY).prepare(Mixed(1.0, classes=None), setting, resumed=False)
    nothing = Setting(None, 0, torch.device("cpu"), None)
    with pytest.raises(InputError, match="monitors.spread fits pca to data in memory, of which the run has none; give"):
        Spread(BATTERY).prepare(Mixed(1.0), nothing, resumed=False)
    with pytest.raises(InputError, match="monitors.fresh draws from a generator; got Linear"):
        Fresh(rdm.objective("frechet"), BATTERY).prepare(nn.Linear(1, 1), setting, resumed=False)
    monkeypatch.undo()
    with confined("x.gin", "trust it"), pytest.raises(RestrictedError, match="may not send its log to a server"):
        trackers.build("wandb")


class Mixed(Generator):
    """Items that are a share of the condition's and the rest of noise, all four numbers of them alike."""

    shape = (1,)

    def __init__(self, share: float, classes: int | None = 5):
        super().__init__()
        self.share, self.classes = nn.Parameter(torch.tensor(share)), classes

    def forward(self, noise, condition=None):
        told = 0.0 if condition is None else condition[:, None].to(noise)
        return (self.share * told + (1 - self.share) * noise).repeat(1, 4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_spread_is_that_of_a_loop_over_pairs(share):
    setting = Setting(None, 3, torch.device("cpu"), None)
    monitor = Spread(rdm.Battery((FLAT,)), groups=4, each=3)
    model = Mixed(share)
    monitor.prepare(model, setting, resumed=False)
    with torch.no_grad():
        found = monitor(model, 1)["spread/flat"]
        items = model(monitor._noise, monitor._condition).double()
    within, across = [], []
    for i in range(12):
        for j in range(12):
            if i != j:
                (within if monitor._condition[i] == monitor._condition[j] else across).append(
                    float((items[i] - items[j]).norm())
                )
    assert len(within) == 4 * 3 * 2
    assert found == pytest.approx((sum(within) / len(within)) / (sum(across) / len(across)), rel=1e-9)
    assert share < 1 or found == 0


class Small(Generator):
    """Pictures of 6 x 6 from noise."""

    shape = (36,)

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, noise, condition=None):
        return (0.5 + 0.2 * noise + self.shift).clamp(0, 1).view(-1, 1, 6, 6)


def test_fresh_distances_are_those_of_the_samples_and_their_ratios_to_the_fresh_rows(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 250, (300, 6, 6)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=pictures, labels=np.arange(300) % 3)
    path = tmp_path / "reference.safetensors"
    make_reference([tmp_path / "data.npz"], path, battery="untrained")
    members = Reference.load(path).members
    n, model = len(members["pixels"].fresh), Small()
    battery = rdm.registry.batteries.build("untrained")
    assert battery.held_out
    setting = Setting(None, 3, torch.device("cpu"), None)
    found = {}
    for size in (n, n + 1):  # of which the reference holds no fresh rows
        monitor = Fresh(rdm.objective("energy"), battery, path, population=size, chunk=20)
        monitor.prepare(model, setting, resumed=False)
        with torch.no_grad():
            found[size] = monitor(model, 7)
    noise = drawn(model, None, n, slice(0, n), lambda k: stream(3, "fresh", 7, k))[0]
    rows, fresh = members["pixels"].rows, members["pixels"].fresh
    with torch.no_grad():
        value, floor = (float(rdm.distance("energy", each, rows)) for each in (model(noise).flatten(1), fresh))
    assert found[n]["fresh/pixels"] == pytest.approx(value, rel=1e-6)
    assert found[n]["fresh_ratio/pixels"] == pytest.approx(value / floor, rel=1e-6)
    held_out = {f"fresh_held_out/{each.name}" for each in battery.held_out}
    trained = {f"fresh/{each.name}" for each in battery.members}
    ratios = {f"fresh_ratio/{each.name}" for each in (*battery.members, *battery.held_out)}
    assert set(found[n]) == held_out | trained | ratios and set(found[n + 1]) == held_out | trained


def test_the_alarm_is_said_when_it_begins():
    fresh = Fresh(rdm.objective("frechet"), BATTERY)
    first = {"fresh_held_out/pixels": 2.0}
    good = {"fresh_ratio/pca": 1.2, "fresh_held_out/pixels": 2.5, "fresh_ratio/pixels": 1.2}
    gamed = good | {"fresh_ratio/pca": 0.9}
    better = gamed | {"fresh_held_out/pixels": 1.5}
    assert fresh.alarm({}, gamed) is None  # the first measurement
    assert fresh.alarm(first, good) is None and fresh.alarm(first, better) is None
    said = fresh.alarm(first, gamed)
    assert said is not None and "pca (0.9)" in said and "pixels" in said and "\n" not in said
    assert fresh.alarm(first, gamed) is None  # once
    assert fresh.alarm(first, good) is None and fresh.alarm(first, gamed) is not None
    # A held-out distance that has fallen may be far from real all the same; one that has risen may be near.
    assert fresh.alarm(first, good) is None and fresh.alarm(first, gamed | {"fresh_ratio/pixels": 0.7}) is None
    said = fresh.alarm({}, better | {"fresh_ratio/pixels": 4.2})
    assert said is not None and "pixels (4.2)" in said
    assert fresh.alarm({}, good | {"fresh_ratio/pixels": 4.2}) is None  # no encoder of training below its floor


class Brighter(Loss):
    """Makes every picture brighter."""

    def prepare(self, model, setting, *, resumed):
        pass

    def backward(self, model, step, scale=1.0):
        (-scale * model.shift / world_size()).backward()
        return {"loss": 0.0}


class Told(Small):
    """Pictures of a few kinds."""

    classes = 3

    def forward(self, noise, condition=None):
        return super().forward(noise + condition[:, None])


def watched(folder: Path, out: Path) -> str:
    """A few steps away from the reference, under all monitors; what was said."""
    battery = rdm.registry.batteries.build("untrained")
    options = {"battery": battery, "reference": folder / "reference.safetensors", "population": 31, "chunk": 7}
    fresh = Fresh(rdm.objective("sliced_wasserstein", projections=8), every=2, **options)
    spread, said = Spread(rdm.Battery((FLAT,)), groups=3, each=4, every=2), io.StringIO()
    with contextlib.redirect_stderr(said), seeded(0):
        train(
            model=Told(), losses=[Brighter()], steps=6, out=out, monitors=[fresh, spread], log_every=2,
            optimizer=partial(torch.optim.SGD, lr=0.05), samples_every=0,
        )  # fmt: skip
    return said.getvalue()


def watched_on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    said = watched(Path(folder), Path(folder) / "two")
    Path(folder, f"said {rank}").write_text(said)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path):
    """Fresh, held-out and spread, and the alarm, which one of them says."""
    source = np.random.default_rng(0)
    for name, least in (("data", 0), ("fresh", 90)):  # a reference that is far from its fresh rows has a high floor
        pictures = source.integers(least, 160 + least, (200, 6, 6)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=pictures, labels=np.arange(200) % 3)
    paths = [tmp_path / f"{name}.npz" for name in ("data", "fresh")]
    make_reference(paths[:1], tmp_path / "reference.safetensors", battery="untrained", fresh=paths[1])
    alone = watched(tmp_path, tmp_path / "one")
    processes.ranks(watched_on_a_rank, (str(tmp_path),), 2)
    kinds = "fresh/", "fresh_ratio/", "fresh_held_out/", "spread/"
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        names = [name for name in theirs if name.startswith(kinds)]
        assert {name.partition("/")[0] + "/" for name in names} == set(kinds)
        assert ours.keys() == theirs.keys()
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-5)
    said = [(tmp_path / f"said {rank}").read_text() for rank in range(2)]
    assert alone.count("the loss may be gamed") == said[0].count("the loss may be gamed") == 1 and not said[1]
