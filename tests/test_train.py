"""Training: bit-identical resumption, interruption, errors, several processes."""

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import rdm
from rdm.errors import InputError
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint
from rdm.losses.classification import Classification
from rdm.losses.flow_matching import FlowMatching
from rdm.losses.matching import Matching
from rdm.numbers import ParameterError
from rdm.randomness import seeded
from rdm.registry import networks
from rdm.training.loop import train
from rdm.training.run import Diverged
from rdm.training.schedule import constant, cosine
from tests import processes


class Noisy(nn.Module):
    """A representation with randomness at each call, to see random states resumed."""

    def forward(self, items):
        return items.flatten(1) + 0.01 * torch.randn(len(items), 64, device=items.device)


def arguments(kind: str, out: Path, **changes) -> dict:
    """A tiny run of each kind of loss, with everything that has state."""
    if kind == "classification":
        model, losses = networks.build("conv_classifier", width=4), [Classification(batch=8)]
    elif kind == "flow":
        model, losses = rdm.generator("mlp_flow", width=8, depth=1), [FlowMatching(batch=8)]
    else:
        memory = {"ema": rdm.EMA(0.9), "queue": rdm.Queue(60)}[kind]
        model = rdm.generator("mlp_flow", width=8, depth=1)
        battery = rdm.Battery((rdm.representation("pca", components=8), rdm.Representation("noisy", Noisy())))
        objective = rdm.objective("frechet") if kind == "ema" else rdm.objective("sliced_wasserstein", projections=8)
        balance = rdm.SelfNormalized() if kind == "ema" else rdm.GradientNorm()
        matching = Matching(objective, battery, 24, 10, memory=memory, balance=balance, warm_up=40)
        losses = [matching, FlowMatching(batch=8)]
    held = "bfloat16" if kind == "queue" else "float32"
    plain = {
        "model": model, "losses": losses, "data": rdm.dataset("digits"), "steps": 6, "out": out, "average": 0.9,
        "optimizer": partial(torch.optim.AdamW, lr=1e-3), "schedule": cosine(0.2), "clip": 1.0, "log_every": 1,
        "samples_every": 3, "checkpoint_every": 2, "keep": 9,
        "precision": held, "parameters": held,
    }  # fmt: skip
    return {**plain, **changes}


def run(kind: str, out: Path, **changes) -> nn.Module:
    with seeded(0):
        return train(**arguments(kind, out, **changes))


ADAM, SGD = partial(torch.optim.AdamW, lr=1e-3), partial(torch.optim.SGD, lr=1e-3)


@pytest.mark.parametrize(
    "kind, optimizer", [("classification", SGD), ("flow", ADAM), ("ema", ADAM), ("queue", ADAM)]
)  # SGD keeps nothing of any parameter
def test_a_resumed_run_is_bit_identical(kind, optimizer, tmp_path):
    whole = run(kind, tmp_path / "whole", optimizer=optimizer)
    run(kind, tmp_path / "cut", optimizer=optimizer)
    for late in complete_checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    torch.rand(7)  # the caller's random state plays no part
    resumed = run(kind, tmp_path / "cut", resume=True, optimizer=optimizer)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    ends = [read_checkpoint(complete_checkpoints(tmp_path / r / "checkpoints")[-1]) for r in ("whole", "cut")]
    assert ends[0][0] == ends[1][0] == 6
    for a, b in zip(leaves(ends[0][1]), leaves(ends[1][1]), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    logs = [untimed(tmp_path / r) for r in ("whole", "cut")]
    assert logs[0] == logs[1] and len(logs[0]) == 6


def untimed(out: Path) -> list[dict]:
    """The rows of a run's log without what its clock says."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in ("seconds", "items_per_second")} for row in rows]


def leaves(tree, name=""):
    """Every leaf of a checkpoint but the time it took."""
    if isinstance(tree, dict):
        return [leaf for k, v in tree.items() if k != "seconds" for leaf in leaves(v, k)]
    if isinstance(tree, list | tuple):
        return [leaf for v in tree for leaf in leaves(v)]
    return [tree]


def test_the_callers_random_state_is_untouched(tmp_path):
    before = torch.get_rng_state()
    run("ema", tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_samples_are_drawn_from_the_same_noise(tmp_path):
    run("flow", tmp_path, steps=6)
    assert [p.name for p in sorted((tmp_path / "samples").iterdir())] == [
        "00000000.png",
        "00000003.png",
        "00000006.png",
    ]


def test_a_non_finite_gradient_stops_the_run_before_the_step(tmp_path):
    model = rdm.generator("mlp_flow", width=8, depth=1)
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    class Explode(FlowMatching):
        def backward(self, model, step, scale=1.0):
            logged = super().backward(model, step, scale)
            next(model.parameters()).grad.fill_(float("nan"))
            return logged

    with pytest.raises(Diverged, match="step 0: the gradient is not finite"):
        run("flow", tmp_path, model=model, losses=[Explode(batch=8)], patience=0)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_non_finite_features_stop_the_run_and_are_named(tmp_path):
    class Broken(nn.Module):
        def forward(self, items):
            return items.flatten(1) / (items.flatten(1).sum(1, keepdim=True) > 0)

    battery = rdm.Battery((rdm.Representation("fragile", Broken()),))
    model = rdm.generator("mlp_flow", width=8, depth=1)
    nn.init.constant_(model.outlet.bias, 1e6)  # every image clamps to black, which divides by zero
    with pytest.raises(Diverged, match="step 0: generated features of 'fragile': NaN or infinity in 10 of 10 rows"):
        run("ema", tmp_path, model=model, losses=[Matching(rdm.objective("mmd"), battery, 24, 10)], patience=0)


def test_losses_refuse_models_they_cannot_train(tmp_path):
    wrong = networks.build("conv_classifier", width=4)
    with pytest.raises(InputError, match="FlowMatching trains a .*FlowGenerator; got ConvClassifier"):
        run("flow", tmp_path, model=wrong)
    with pytest.raises(InputError, match="Matching trains a rdm.generators.protocol.Generator"):
        run("ema", tmp_path, model=wrong)
    with pytest.raises(InputError, match="population must be a whole number from 1 to 16777216; got 0"):
        Matching(rdm.objective("mmd"), rdm.battery("untrained"), population=0)


@pytest.mark.parametrize("name, value", [
    ("steps", 0), ("steps", -5), ("steps", 2.5), ("steps", "9"), ("steps", None), ("clip", -1.0), ("clip", 0),
    ("clip", float("nan")), ("keep", -1), ("keep", 0), ("log_every", 0), ("checkpoint_every", -1),
    ("samples_every", 2.0), ("average", 1.0), ("average", -0.1), ("seed", 2.5), ("seed", "x"), ("seed", 2**63),
    ("device", "gpu"), ("losses", []), ("losses", [FlowMatching]), ("optimizer", "adam"), ("data", "digits"),
    ("schedule", 0.5), ("model", None), ("optimizer", partial(torch.optim.SGD, lr=0.0)),
    ("optimizer", partial(torch.optim.AdamW, lr=float("inf"))),
])  # fmt: skip
def test_values_that_undo_training_are_refused_before_anything_is_written(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{'lr' if isinstance(value, partial) else name} must be"):
        run("flow", tmp_path, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("build", [
    lambda: FlowMatching(batch=0), lambda: FlowMatching(batch=-4), lambda: Classification(batch=2.5),
    lambda: Classification(smoothing=1.0), lambda: Matching(rdm.objective("mmd"), rdm.battery("untrained"), 24.5),
    lambda: Matching(type(rdm.objective("mmd")), rdm.battery("untrained")), lambda: cosine(floor=-0.1),
    lambda: Matching(rdm.objective("mmd"), rdm.battery("untrained"), memory="ema"), lambda: constant("x"),
    lambda: rdm.SelfNormalized(float("inf")), lambda: rdm.generator("mlp_flow", width=0),
    lambda: rdm.dataset("digits", split="test"), lambda: rdm.objective("sliced_wasserstein", projections=2.5),
    lambda: rdm.objective("sliced_wasserstein", root="x"), lambda: rdm.objective("mmd", bandwidth="x"),
])  # fmt: skip
def test_what_members_are_given_is_checked_against_their_annotations(build):
    with pytest.raises(ParameterError, match=r"^\w+: \w+ must be .*; got .*"):
        build()


def test_two_losses_of_one_kind_are_both_logged(tmp_path):
    losses = [
        Matching(rdm.objective(name), rdm.Battery((rdm.representation("pixels"),)), 16) for name in ("energy", "mmd")
    ]
    run("flow", tmp_path, losses=[*losses, FlowMatching(batch=8)], steps=1)
    (record,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert {"distance/pixels#1", "distance/pixels#2", "loss#1", "loss#2", "loss#3"} < set(record)
    assert record["distance/pixels#1"] == record["loss#1"] != record["loss#2"] == record["distance/pixels#2"]
    assert record["loss"] == pytest.approx(sum(record[f"loss#{k}"] for k in (1, 2, 3)))


def test_every_step_has_a_rate_whatever_warms_up_or_ends(tmp_path):
    run("flow", tmp_path, losses=[FlowMatching(batch=8)], steps=2, schedule=cosine(0.5))
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.5e-3, 0.5e-3])  # of 1e-3: halfway up, halfway down


def test_schedules():
    assert [constant(0.5)(x) for x in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    factor = cosine(0.1, floor=0.2)
    assert factor(0) == 0 and factor(0.1) == pytest.approx(1) and factor(1) == pytest.approx(0.2)
    assert factor(0.55) == pytest.approx(0.6)
    with pytest.raises(InputError, match="warmup must be a number from 0 and below 1; got 1.0"):
        cosine(1.0)


CONFIG = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 100000
rdm.train.optimizer = @optimizers.adamw
generators.mlp_flow.width = 8
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_where(tmp_path, number):
    (tmp_path / "x.gin").write_text(CONFIG)
    process, log = processes.rdm("train", "x.gin", "--out", "run", cwd=tmp_path), tmp_path / "run" / "log.jsonl"
    processes.until(lambda: log.exists() and log.read_text().count("\n") > 1, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (saved,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    last = err.strip().splitlines()[-1]
    assert (
        last.startswith("rdm: interrupted at step") and f"run/checkpoints/{saved.name}" in last and "--resume" in last
    )
    step, _ = read_checkpoint(saved)
    assert step == int(saved.name) > 0


def test_kill_in_the_middle_leaves_only_whole_checkpoints(tmp_path):
    (tmp_path / "x.gin").write_text(CONFIG + "rdm.train.checkpoint_every = 1\n")
    process = processes.rdm("train", "x.gin", "--out", "run", cwd=tmp_path)
    processes.until(lambda: len(complete_checkpoints(tmp_path / "run" / "checkpoints")) > 1, process)
    process.kill()
    process.wait()
    found = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert found and all(read_checkpoint(path)[0] == int(path.name) for path in found)
