"""Weight averages: against their closed forms in float64, several at once, in checkpoints and on the command line."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rdm
from rdm.__main__ import main
from rdm.app.sampling import trained
from rdm.errors import InputError
from rdm.files.checkpoint import complete_checkpoints, load_weights, read_checkpoint
from rdm.scaling.averages import Average, Averages, Constant, HalfLife, Power, as_averages
from rdm.scaling.weights import Weights
from rdm.training.schedule import constant
from tests.test_train import run


def averaged(kind: Average, steps: list[list[float]], size: int = 1) -> list[float]:
    """What an average makes of a run's weights, in float64."""
    model = nn.Linear(len(steps[0]), 1, bias=False).double()
    averages = Averages([kind], Weights(model), size)
    for step in steps:
        model.weight.data.copy_(torch.tensor([step], dtype=torch.float64))
        averages.update()
    return averages.first["weight"][0].tolist()


weights = st.integers(1, 3).flatmap(
    lambda d: st.lists(st.lists(st.floats(-9, 9), min_size=d, max_size=d), min_size=1, max_size=20)
)


def combined(shares: list[float], steps: list[list[float]]) -> list[float]:
    assert sum(shares) == pytest.approx(1)
    return [sum(p * step[k] for p, step in zip(shares, steps, strict=True)) for k in range(len(steps[0]))]


@given(weights, st.floats(0, 0.9999))
def test_constant_decay_is_its_sum(steps, decay):
    t = len(steps)
    shares = [decay ** (t - 1), *((1 - decay) * decay ** (t - i) for i in range(2, t + 1))]
    assert averaged(Constant(decay), steps) == pytest.approx(combined(shares, steps), abs=1e-12)


@given(weights, st.floats(0.001, 0.28))
def test_power_is_the_integral_of_its_profile(steps, spread):
    """Over the unit of time of each step; the profile tau^gamma / t^(gamma + 1) has this spread on a long run."""
    kind, t = Power(spread), len(steps)
    g = kind.exponent
    shares = [(i / t) ** (g + 1) - ((i - 1) / t) ** (g + 1) for i in range(1, t + 1)]
    assert averaged(kind, steps) == pytest.approx(combined(shares, steps), abs=1e-11)
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)  # moments of the profile on (0, 1)
    assert (square - mean**2) ** 0.5 == pytest.approx(spread, rel=1e-6)


@given(weights, st.integers(1, 500), st.floats(1, 1e4), st.none() | st.floats(0.01, 2))
def test_half_life_halves(steps, size, items, ramp):
    """A step's share is halved after H items, or after the ramp's share of those seen, and all shares sum to 1."""
    t, kept = len(steps), []
    for i in range(t):
        life = items if ramp is None else min(items, ramp * i * size)
        kept.append(2.0 ** (-size / life) if i else 0.0)
    shares = [(1 - kept[i]) * float(torch.tensor([1.0, *kept[i + 1 :]], dtype=torch.float64).prod()) for i in range(t)]
    assert averaged(HalfLife(items, ramp), steps, size) == pytest.approx(combined(shares, steps), abs=1e-11)
    without = HalfLife(items, ramp=None)
    assert without.beta(5, 1) ** items == pytest.approx(0.5)


def test_buffers_are_the_last_and_narrow_weights_are_averaged_in_float32():
    model = nn.BatchNorm1d(2).bfloat16()
    averages = Averages([Constant(0.999), Constant(0.5, on_cpu=True)], Weights(model))
    averages.update()
    later = {"weight": torch.full((2,), 1.25), "running_mean": torch.full((2,), 3.0), "num_batches_tracked": 7}
    for name, value in later.items():
        model.state_dict()[name].copy_(torch.as_tensor(value))
    averages.update()
    torch.testing.assert_close(averages.first["weight"], torch.full((2,), 1 + 0.25e-3), atol=1e-6, rtol=0)
    assert averages.first["running_mean"].tolist() == [3, 3] and averages.first["num_batches_tracked"] == 7
    live = {name: value.clone() for name, value in model.state_dict().items()}
    with averages.shown() as shown:
        assert shown is model and torch.equal(model.weight, averages.first["weight"].bfloat16())
    assert all(torch.equal(value, live[name]) for name, value in model.state_dict().items())


def test_several_are_kept_resumed_and_chosen_by_name(tmp_path):
    """All of them in the checkpoint, to the bit of one alone; the first is returned; one or none by `entry`."""
    kinds = [0.9, HalfLife(16.0, ramp=None), Power(0.1, name="late", on_cpu=True)]
    short = {"samples_every": 0, "schedule": constant()}
    whole = run("flow", tmp_path / "whole", average=kinds, **short)
    alone = run("flow", tmp_path / "alone", average=0.9, **short)
    run("flow", tmp_path / "cut", average=kinds, **{**short, "steps": 4})
    run("flow", tmp_path / "cut", average=kinds, resume=True, **short)
    ends = [read_checkpoint(complete_checkpoints(tmp_path / r / "checkpoints")[-1])[1] for r in ("whole", "cut")]
    names = ["constant_0.9", "half_life_16", "late"]
    assert list(ends[0]["averages"]) == names and ends[0]["averaged"] == 6
    for each in (*names, None):
        first, second = ((end["averages"][each] if each else end["model"]) for end in ends)
        assert all(torch.equal(first[k], second[k]) for k in first), each
    for model in (whole, alone):
        assert all(torch.equal(v, ends[0]["averages"]["constant_0.9"][k]) for k, v in model.state_dict().items())
    loaded = rdm.generator("mlp_flow", width=8, depth=1)
    for entry, held in (("late", ends[0]["averages"]["late"]), ("none", ends[0]["model"]), (None, whole.state_dict())):
        load_weights(loaded, str(tmp_path / "whole"), entry=entry)
        assert all(torch.equal(v, held[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(InputError, match="has no weight average 'edm'; it has constant_0.9, half_life_16, late, none"):
        load_weights(loaded, str(tmp_path / "whole"), entry="edm")


@pytest.mark.parametrize("given, message", [
    ([0.9, Constant(0.9)], "'constant_0.9' occurs twice"), (Constant, "add ()"), (True, "number"),
])  # fmt: skip
def test_what_is_no_set_of_averages_is_refused(tmp_path, given, message):
    with pytest.raises(InputError, match=message.replace("()", r"\(\)")):
        run("flow", tmp_path, average=given)
    assert not list(tmp_path.iterdir())


def test_an_average_by_items_needs_their_number():
    with pytest.raises(InputError, match="half_life_500000 counts items, and no loss says how many"):
        Averages(as_averages(HalfLife()), Weights(nn.Linear(1, 1)))
    with pytest.raises(InputError, match="name of an average must be a word other than 'none'"):
        Constant(name="none")


CONFIG = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 2
rdm.train.samples_every = 0
rdm.train.optimizer = @optimizers.adamw
rdm.train.average = [@averages.constant(), @averages.half_life()]
averages.constant.decay = 0.9
averages.half_life.items = 1000.0
averages.half_life.name = 'edm'
losses.flow_matching.batch = 8
generators.mlp_flow.width = 8
"""


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gin").write_text(CONFIG)
    assert main(["train", "x.gin", "--out", "run"]) == 0
    state = read_checkpoint(complete_checkpoints(tmp_path / "run" / "checkpoints")[-1])[1]
    for name in ("edm", "none"):
        assert main(["sample", "run", "--n", "2", "--average", name, "--out", f"{name}.npz"]) == 0
        held = state["averages"]["edm"] if name == "edm" else state["model"]
        own = trained(tmp_path / "run", average=name).generator.state_dict()
        assert all(torch.equal(value, held[key]) for key, value in own.items())
    capsys.readouterr()
    assert main(["sample", "run", "--n", "2", "--average", "emd", "--out", "y.npz"]) == 2
    error = capsys.readouterr().err
    assert "has no weight average 'emd'; it has constant_0.9, edm, none" in error and error.count("\n") == 1
    assert main(["evaluate", str(tmp_path / "edm.npz"), "--reference", "x", "--average", "edm"]) == 2
    assert "--average is of items to draw from a run" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
