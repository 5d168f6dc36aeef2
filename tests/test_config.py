"""Configuration: names and errors, restricted mode, what is written down."""

import pytest
import torch

import rdm
from rdm import config
from rdm.errors import InputError
from rdm.registry import registries
from tests.conftest import objective_cases

BASE = """
rdm.train.model = @networks.conv_classifier()
rdm.train.losses = [@losses.classification()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 2
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "x.gin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name, example", objective_cases())
def test_every_objective_is_built_from_gin(write, name, example):
    lines = [f"losses.matching.objective = @objectives.{name}()"]
    lines += [f"objectives.{name}.{key} = {value!r}" for key, value in example.items()]
    lines += ["losses.matching.battery = @batteries.untrained()", "rdm.train.losses = [@losses.matching()]"]
    config.load(write(BASE + "\n".join(lines)))
    (loss,) = config.plan()["losses"]
    assert loss.objective == rdm.objective(name, **example)


@pytest.mark.parametrize(
    "binding, message",
    [
        ("objectives.frechett.correction = 0", "unknown name 'objectives.frechett'; did you mean 'objectives.frechet'"),
        ("objectives.frechet.corection = 0", "no parameter 'corection'; did you mean 'correction'"),
        ("rdm.train.stepz = 3", "rdm.train has no parameter 'stepz'; did you mean 'steps'"),
        ("rdm.train.losses = [@losses.machting()]", "unknown name 'losses.machting'; did you mean 'losses.matching'"),
        ("rdm.train.steps = = 3", "--bind"),
    ],
)
def test_unknown_names_come_with_the_nearest(write, binding, message):
    with pytest.raises(InputError, match=message):
        config.load(write(BASE), [binding])
    with pytest.raises(InputError, match=message.replace("--bind", "x.gin")):
        config.load(write(BASE + binding))


def test_missing_bindings_and_files_are_named(write, tmp_path):
    config.load(write(BASE.replace("rdm.train.steps = 2", "")))
    with pytest.raises(InputError, match="must bind rdm.train.steps"):
        config.plan()
    with pytest.raises(InputError, match="expected a gin file at .*nothing.gin; there is none"):
        config.load(tmp_path / "nothing.gin")
    with pytest.raises(InputError, match="expected a gin file at .*inner.gin"):
        config.load(write("include 'inner.gin'"))


def test_errors_of_constructors_stay_one_line(write):
    config.load(write(BASE + "rdm.train.losses = [@losses.matching()]\nlosses.matching.battery = @batteries.untrained()"
                      "\nlosses.matching.objective = @objectives.mmd()\nobjectives.mmd.bandwidth = -1"))  # fmt: skip
    with pytest.raises(InputError) as caught:
        config.plan()
    assert config.own_text(caught.value).startswith("MMD: bandwidth must be a number")
    assert "configurable" not in config.own_text(caught.value)


def test_includes_are_relative_to_the_file(write, tmp_path, monkeypatch):
    write(BASE, "base/base.gin")
    path = write("include '../base/base.gin'\nrdm.train.steps = 5", "runs/x.gin")
    monkeypatch.chdir("/")
    config.load(path)
    assert config.plan()["steps"] == 5


def test_bindings_win_and_are_in_the_operative_configuration(write):
    config.load(write(BASE), ["rdm.train.steps = 9", "networks.conv_classifier.width = 8"])
    assert config.plan()["steps"] == 9
    text = config.operative()
    assert "train.steps = 9" in text and "conv_classifier.width = 8" in text and "batch = 128" in text
    again = write(text, "again.gin")
    config.load(again)
    assert config.plan()["steps"] == 9 and config.operative() == text


def test_hyperparameters_of_the_optimizer_are_recorded_and_checked(write):
    """The optimizer is called only while training, but what it will be called with is configuration too."""
    path = write(BASE, "y.gin")
    config.load(path, ["rdm.train.optimizer = @optimizers.adam", "optimizers.adam.lr = 0.25"])
    config.plan()
    assert "adam.lr = 0.25" in config.operative()
    config.load(path, ["rdm.train.optimizer = @optimizers.adam", "optimizers.adam.lr = -1.0"])
    with pytest.raises(InputError, match="rdm.train.optimizer: .*learning rate"):
        config.plan()


def test_restricted_mode(write, tmp_path):
    outside = write(BASE, "outside.gin")
    inside = write(BASE, "in/base.gin")
    config.load(write("include 'base.gin'", "in/x.gin"), restricted=True)
    assert inside.exists() and outside.exists()
    for text, message in (
        ("import os\n" + BASE, "refuses 'import os'"),
        ("from __gin__ import dynamic_registration\n" + BASE, "refuses 'from __gin__"),
        ("include '../outside.gin'", "refuses to include"),
        ("rdm.train.model = @os.getcwd()\n", "unknown name 'os.getcwd'"),
    ):
        with pytest.raises(InputError, match=message):
            config.load(write(text, "in/x.gin"), restricted=True)
    with pytest.raises(InputError, match="refuses 'import os'"):
        config.load(write(BASE, "in/x.gin"), ["import os"], restricted=True)


def test_every_registered_member_is_known_to_gin(write):
    known = config._register_all()
    for kind, registry in registries.items():
        assert all(f"{kind}.{name}" in known for name in registry)


def test_the_seed_is_found(write):
    config.load(write(BASE))
    assert config.seed() == 0
    config.load(write(BASE), ["rdm.train.seed = 4"])
    assert config.seed() == 4


def test_gin_leaves_classes_untouched(write):
    config.load(write(BASE), ["objectives.frechet.correction = 0", "optimizers.adamw.lr = 5.0"])
    assert rdm.objective("frechet").correction == 1
    assert torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).defaults["lr"] == 1e-3
