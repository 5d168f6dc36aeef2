"""Configuration: names and errors, restricted mode, what is written down."""

import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rdm
from rdm.app import config
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


def test_a_module_that_is_not_found_is_named_with_its_line(write):
    with pytest.raises(InputError, match=r"x\.gin:2: no module 'no_such' is found; .*PYTHONPATH=FOLDER"):
        config.load(write("# mine\nimport no_such\n" + BASE))


@pytest.mark.parametrize("name, example", objective_cases())
def test_every_objective_is_built_from_gin(write, name, example):
    lines = [f"losses.matching.objective = @objectives.{name}()"]
    lines += [f"objectives.{name}.{key} = {value!r}" for key, value in example.items()]
    lines += ["losses.matching.battery = @batteries.untrained()", "rdm.train.losses = [@losses.matching()]"]
    config.load(write(BASE + "\n".join(lines)))
    (loss,) = config.plan()["losses"]
    assert loss.objective == rdm.objective(name, **example)


BY_MEMBER = """
rdm.train.losses = [@losses.matching()]
losses.matching.objective = {'pixels': @a/objectives.mmd(), 'pca': @b/objectives.frechet()}
losses.matching.battery = @rdm.battery()
rdm.battery.members = [@representations.pixels(), @representations.pca()]
rdm.battery.weights = {'pca': 2.0, 'pixels': 0.5}
a/objectives.mmd.bandwidth = 3.0
b/objectives.frechet.correction = 0
"""


def test_each_member_has_its_own_objective_by_scopes(write):
    config.load(write(BASE + BY_MEMBER))
    (loss,) = config.plan()["losses"]
    expected = {"pixels": rdm.objective("mmd", bandwidth=3.0), "pca": rdm.objective("frechet", correction=0)}
    assert loss.objective == expected and loss.battery.member_weights == (0.5, 2.0)
    for change, message in (
        (("'pca': @b", "'pcs': @b"), "x.gin:8: losses.matching: objective: no member .* 'pcs'; did you mean 'pca'"),
        ((", 'pca': @b/objectives.frechet()}", "}"), "losses.matching: objective: expected one .* given for 'pca'"),
        (("{'pca': 2.0, ", "{'pcb': 2.0, "), "weights: no member is called 'pcb'; did you mean 'pca'"),
    ):
        text = BY_MEMBER.replace(*change).replace("b/objectives.frechet.correction = 0", "")
        config.load(write(BASE + text))
        with pytest.raises(InputError, match=message) as caught:
            config.plan()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "binding, message",
    [
        ("objectives.frechett.correction = 0", "unknown name 'objectives.frechett'; did you mean 'objectives.frechet'"),
        ("objectives.frechet.corection = 0", "no parameter 'corection'; did you mean 'correction'"),
        ("rdm.train.stepz = 3", "rdm.train has no parameter 'stepz'; did you mean 'steps'"),
        ("rdm.train.losses = [@losses.machting()]", "unknown name 'losses.machting'; did you mean 'losses.matching'"),
        ("rdm.train.steps = = 3", "--bind.*Unable to parse value; a line binds NAME = VALUE"),
        ("zzz.number = 3", "unknown name 'zzz'; `rdm list` names what there is"),
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
    assert re.search(r"x.gin:9: objectives.mmd.bandwidth must be a number from .*; got -1$", str(caught.value))
    assert "configurable" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("binding, message", [
    ("optimizers.adamw.lr = 5.0", "add rdm.train.optimizer = @optimizers.adamw, or"),
    ("memories.ema.decay = 0.5", "refer to it by @memories.ema"),
    ("schedules.cosine.floor = 0.1", r"add rdm.train.schedule = @schedules.cosine\(\), or"),
    ("a/networks.conv_classifier.width = 3", r"add rdm.train.model = @a/networks.conv_classifier\(\), or"),
    ("augmentations.jitter.shift = 2", r"add losses.classification.augmentation = @augmentations.jitter\(\), or"),
    ("losses.flow_matching.batch = 2", r"add rdm.train.losses = \[@losses.flow_matching\(\)\], or"),
    ("WIDTH = 3", "refer to it so"),
    ("rdm.sweep.grid = {'rdm.train.seed': [0, 1]}", None),
])  # fmt: skip
def test_bindings_that_nothing_reads_come_with_the_line_that_is_missing(write, binding, message):
    config.load(write(BASE), [binding])
    with pytest.raises(InputError, match=f"--bind .*: nothing reads .*{message or ''}"):
        config.plan()
    config.load(write(BASE + binding))
    if message is None:  # a sweep's file trains too
        assert config.plan()["steps"] == 2
        config.load(write(BASE + binding), ["rdm.train.losses = [@losses.matching()]"])
        with pytest.raises(InputError, match="needs 'objective'.*the file holds a grid, whose points `rdm sweep` trai"):
            config.plan(alone=True)
    else:
        with pytest.raises(InputError, match=f"x.gin:6: nothing reads .*{message}"):
            config.plan()


def test_a_binding_is_read_through_references_macros_scopes_and_lines_that_were_overridden(write):
    text = """
rdm.train.optimizer = @optimizers.adamw
optimizers.adamw.lr = %RATE
RATE = %BASE
BASE = 0.5
rdm.train.model = @wide/networks.conv_classifier()
networks.conv_classifier.width = 4
wide/networks.conv_classifier.width = 8
losses.classification.augmentation = @augmentations.jitter()
augmentations.jitter.shift = 2
"""
    config.load(write(BASE + text), ["losses.classification.augmentation = None", "BASE = 0.25"])
    config.plan()
    config.load(write(BASE + text), ["losses.classification.augmentation = None", "augmentations.jitter.shift = 3"])
    with pytest.raises(InputError, match="--bind 'augmentations.jitter.shift = 3': nothing reads"):
        config.plan()


@pytest.mark.parametrize("text, message", [
    ("rdm.train.steps = [1,", r"x.gin:\d+: .*a bracket or quote is not closed"),
    ("rdm.train.steps = 'a", r"x.gin:6: "),
    ("\n\nrdm.train.steps = = 3", "x.gin:8: Unable to parse value"),
    ("rdm.train.steps = " + "[" * 100_000 + "]" * 100_000, "x.gin:.*nest|too many nested|overflow"),
    ("include 'x.gin'", "x.gin:6: .*x.gin includes itself"),
    ("include 'inner.gin'", r"inner.gin:3: rdm.train has no parameter 'stepz'; did you mean 'steps'"),
    ("rdm.train.clip = -1.0", "x.gin:6: rdm.train.clip must be a number from"),
    ("rdm.train.average = 1.5", "x.gin:6: rdm.train.average must be a number from 0 and below 1"),
    ("rdm.train.device = 'gpu'", "x.gin:6: rdm.train.device must be text"),
    ("rdm.train.losses = []", "x.gin:6: rdm.train.losses must be a list of at least one"),
    ("rdm.train.losses = [@losses.classification]", r"x.gin:6: rdm.train.losses .* was not called; add \(\)"),
    ("rdm.train.losses = @losses.classification()", "x.gin:6: rdm.train.losses must be a list"),
    ("rdm.train.clip = inf", "x.gin:6: 'inf' is no value; a text is written in quotes"),
    ("rdm.train.losses = [@losses.matching()]\nlosses.matching.objective = @objectives.mmd()\n"
     "losses.matching.battery = @rdm.battery()\nrdm.battery.members = [@representations.pixels]",
     r"x.gin:9: rdm.battery.members must be .* add \(\)"),
    ("rdm.train.evaluation = 3", "x.gin:6: rdm.train.evaluation must be Judge or None; got 3"),
    ("rdm.train.losses = [@losses.matching()]", "x.gin:6: losses.matching needs 'objective'"),
    ("losses.classification.batch = 0", "x.gin:6: losses.classification.batch must be a whole number from 1"),
    ("rdm.train.optimizer = @optimizers.adamw()", r"x.gin:6: optimizers.adamw needs 'params'; .* without \(\)"),
    ("rdm.train.optimizer = @optimizers.sgd\noptimizers.sgd.lr = 0", "x.gin:7: .*lr must be"),
    ("rdm.train.optimizer = @optimizers.sgd\noptimizers.sgd.lr = 'x'", "x.gin:7: optimizers.sgd: "),
    ("rdm.train.optimizer = @optimizers.adam\noptimizers.adam.lr = 1e-3\noptimizers.adam.betas = 0.9",
     "optimizers.adam: 'float' object is not subscriptable; it was given lr by .*x.gin:7, betas by .*x.gin:8$"),
    ("rdm.train.losses = [@losses.matching()]\nlosses.matching.objective = 'mmd'",
     r"x.gin:7: losses.matching.objective must be .*; got 'mmd'; refer to it by @objectives.mmd\(\)$"),
    ("rdm.train.data = 'digits'", r"x.gin:6: rdm.train.data must be .*'; refer to it by @datasets.digits\(\)$"),
    ("rdm.train.trackers = ['wandb']", r"x.gin:6: .*; refer to it by \[@trackers.wandb\(\)\]$"),
])  # fmt: skip
def test_errors_carry_the_file_and_line_they_came_from(write, text, message):
    write("\n\nrdm.train.stepz = 3\n", "inner.gin")
    for restricted in (False, True):
        with pytest.raises(InputError, match=message) as caught:
            config.load(write(BASE + text), restricted=restricted)
            config.plan()
        assert "\n" not in str(caught.value)


EDITS = st.tuples(
    st.integers(0, 200), st.integers(0, 8), st.sampled_from([*"()[]{}'\"@%=./:#\\,\n\t -é\x00", "import os\n", "1e999"])
)


@settings(max_examples=150)
@given(st.lists(EDITS, min_size=1, max_size=3))
def test_a_file_with_any_typing_error_loads_or_ends_in_one_line(edits):
    text = BASE
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.gin")
        path.write_text(text)
        try:
            config.load(path, restricted=True)
            assert 0 <= config.seed() < 2**63 and isinstance(config.unread(), list)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_files_that_are_no_text_and_includes_without_end_are_refused(write, tmp_path):
    (tmp_path / "x.gin").write_bytes(b"rdm.train.steps = '\xff'")
    with pytest.raises(InputError, match="x.gin: expected text in UTF-8; got invalid start byte at byte 19"):
        config.load(tmp_path / "x.gin")
    for k in range(20):
        write(f"include '{k + 1}.gin'\n" * 2, f"{k}.gin")
    write("", "20.gin")
    with pytest.raises(InputError, match="more than 500 files are included"):
        config.load(tmp_path / "0.gin")
    with pytest.raises(InputError, match="--bind ' ': expected 'NAME = VALUE'"):
        config.load(write(BASE), [" "])


def test_includes_are_relative_to_the_file(write, tmp_path, monkeypatch):
    write(BASE, "base/base.gin")
    path = write("include '../base/base.gin'\nrdm.train.steps = 5", "runs/x.gin")
    monkeypatch.chdir("/")
    config.load(path)
    assert config.plan()["steps"] == 5


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("name", ["digits/classifier", "digits/classifier.gin"])
def test_the_packages_own_files_are_included_by_name(write, name, restricted):
    path = write(f"include '{name}'\nrdm.train.steps = 5", "x.gin")
    config.load(path, restricted=restricted)
    assert config.plan()["steps"] == 5
    with pytest.raises(
        InputError, match="expected a gin file at .*elsewhere.gin; there is none; `rdm list experiments`"
    ):
        config.load(write("include 'elsewhere.gin'", "y.gin"))


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
    with pytest.raises(InputError, match="lr = -1.0': optimizers.adam: .*learning rate"):
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
    config.load(write(BASE), ["S = 3", "rdm.train.seed = %S"])
    assert config.seed() == 3 == config.plan()["seed"]
    config.load(write(BASE), ["rdm.train.seed = 'x'"])
    with pytest.raises(InputError, match="rdm.train.seed must be a whole number"):
        config.seed()


def test_gin_leaves_classes_untouched(write):
    config.load(write(BASE), ["objectives.frechet.correction = 0", "optimizers.adamw.lr = 5.0"])
    assert rdm.objective("frechet").correction == 1
    assert torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).defaults["lr"] == 1e-3
