"""The command line as a user meets it: exit statuses, one-line errors, a whole run, the report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rdm.__main__ import main

ROOT = Path(__file__).parent.parent
CLASSIFIER = """
rdm.train.model = @networks.conv_classifier()
rdm.train.losses = [@losses.classification()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 3
networks.conv_classifier.width = 4
"""
GENERATOR = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 3
rdm.train.log_every = 1
rdm.train.evaluation = @rdm.evaluation()
generators.mlp_flow.width = 8
losses.matching.objective = @objectives.mmd()
losses.matching.battery = @batteries.untrained()
losses.matching.population = 32
rdm.evaluation.reference = @datasets.digits()
rdm.evaluation.fresh = @fresh/datasets.digits()
rdm.evaluation.battery = @batteries.untrained()
rdm.evaluation.metrics = {'sw': @objectives.sliced_wasserstein()}
rdm.evaluation.compare = {'many steps': @many/generators.mlp_flow()}
rdm.evaluation.resamples = 3
many/generators.mlp_flow.steps = 4
fresh/datasets.digits.split = 'fresh'
"""


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classifier.gin").write_text(CLASSIFIER)
    (tmp_path / "generator.gin").write_text(GENERATOR)
    return tmp_path


def refused(capsys, *arguments: str, status: int = 2) -> str:
    """Run a command that must fail; its one line on standard error."""
    capsys.readouterr()
    assert main(arguments) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("rdm: "), lines
    return lines[0]


def test_a_run_writes_what_the_contract_says(at, capsys):
    assert main(["train", "generator.gin", "--out", "run", "--bind", "rdm.train.seed = 3"]) == 0
    printed = capsys.readouterr().out
    assert "sw/pixels" in printed and "run/report.html" in printed
    result = json.loads((at / "run" / "result.json").read_text())
    assert set(result) == {"metrics", "steps", "seconds", "seed", "versions", "config_sha256"}
    assert result["steps"] == 3 and result["seed"] == 3
    metric = result["metrics"]["sw/held_out_convolutions"]
    assert set(metric) == {"value", "low", "high", "n", "seed"} and metric["low"] <= metric["value"] <= metric["high"]
    assert "many steps: sw/pixels" in result["metrics"]
    assert len((at / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert "train.seed = 3" in (at / "run" / "config.gin").read_text()
    assert (at / "run" / "checkpoints" / "00000003").is_dir()
    page = (at / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "<svg" in page and "sw/pixels" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "the report must be self-contained"


def test_a_finished_run_is_reused_and_another_configuration_refused(at, capsys):
    assert main(["train", "generator.gin", "--out", "run"]) == 0
    before = (at / "run" / "result.json").read_bytes()
    assert main(["train", "generator.gin", "--out", "run", "--resume"]) == 0
    assert (at / "run" / "result.json").read_bytes() == before
    assert "--resume to go on" in refused(capsys, "train", "generator.gin", "--out", "run")
    line = refused(capsys, "train", "generator.gin", "--out", "run", "--resume", "--bind", "rdm.train.steps = 4")
    assert "begun with 'train.steps = 3'; now 'train.steps = 4'" in line
    assert (at / "run" / "result.json").read_bytes() == before


def test_evaluate_gives_the_same_numbers_again(at, capsys):
    assert main(["train", "generator.gin", "--out", "run"]) == 0
    assert main(["evaluate", "run", "--json", "again.json"]) == 0
    again = json.loads((at / "again.json").read_text())
    assert again == json.loads((at / "run" / "result.json").read_text())["metrics"]


def test_train_encoder_then_use_it(at, capsys):
    assert main(["train", "classifier.gin"]) == 0
    assert (at / "runs" / "classifier" / "report.html").exists()
    bindings = [
        "losses.matching.battery = @rdm.battery()",
        "rdm.battery.members = [@representations.classifier()]",
        "representations.classifier.weights = 'runs/classifier'",
        "rdm.train.evaluation = None",
    ]
    assert main(["train", "generator.gin", "--out", "two", *(x for b in bindings for x in ("--bind", b))]) == 2
    assert "ConvClassifier: weights at runs/classifier are of another architecture" in capsys.readouterr().err
    bindings += [
        "networks.conv_classifier.width = 4",
        "representations.classifier.network = @networks.conv_classifier()",
    ]
    arguments = ["train", "generator.gin", "--out", "two", *(x for b in bindings for x in ("--bind", b))]
    assert main(arguments) == 0


def test_wrong_arguments_are_one_line_and_leave_nothing(at, capsys):
    lines = {
        "nothing.gin; there is none": ["train", "nothing.gin"],
        "did you mean 'objectives.mmd'": ["train", "generator.gin", "--bind", "objectives.mdm.bandwidth = 1"],
        "bandwidth must be a number from": ["train", "generator.gin", "--bind", "objectives.mmd.bandwidth = -1"],
        "there are none": ["train", "generator.gin", "--bind", "generators.mlp_flow.weights = 'no'"],
        "expected a run with": ["report", "no"],
        "there is none; to judge samples give --reference FILE": ["evaluate", "no"],
        "rdm list takes one of": ["list", "no"],
        "restricted mode": ["train", "generator.gin", "--restricted", "--bind", "import os"],
    }
    for message, arguments in lines.items():
        assert message in refused(capsys, *arguments)
    assert sorted(p.name for p in at.iterdir()) == ["classifier.gin", "generator.gin"]


def test_a_run_that_failed_before_its_first_checkpoint_may_be_mended_and_started_again(at, capsys):
    broken = ["--bind", "losses.matching.objective = @objectives.frechet()", "--bind", "losses.matching.population = 1"]
    assert "effective number of rows above 1" in refused(capsys, "train", "generator.gin", "--out", "run", *broken)
    assert main(["train", "generator.gin", "--out", "run"]) == 0


def test_failures_while_running_have_status_1(at, capsys):
    bindings = "rdm.train.optimizer = @optimizers.adamw", "optimizers.adamw.lr = 1e30", "rdm.train.steps = 50"
    line = refused_running(capsys, "train", "classifier.gin", *(x for b in bindings for x in ("--bind", b)))
    assert "loss is not finite" in line


def refused_running(capsys, *arguments: str) -> str:
    """As `refused`, with status 1 and progress lines before the error."""
    capsys.readouterr()
    assert main(arguments) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_usage_errors_have_status_2_and_one_line(capsys):
    for arguments, said in ((["fly"], "rdm: argument COMMAND"), (["train"], "rdm train: the ")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count("\n") == 1, error
        assert error.startswith(said) and error.endswith(" --help\n")


def test_a_reader_that_leaves_is_no_error(at):
    shown = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m rdm list | true"], capture_output=True, text=True, cwd=at
    )
    assert shown.stderr == ""


def test_what_a_run_s_own_evaluation_cannot_take_is_refused(capsys):
    for flag in (["--metrics", "fd"], ["--chart", "x.svg"], ["--n", "5"], ["--seed", "1"], ["--skip-broken"]):
        line = refused(capsys, "evaluate", "runs/any", *flag)
        assert f"{flag[0]} needs --reference FILE" in line


@pytest.mark.parametrize("flag, value", [
    ("--batch", "0"), ("--batch", "-4"), ("--workers", "-1"), ("--workers", "1000000"), ("--size", "0"),
    ("--size", "-3"), ("--landmarks", "-1"), ("--save-every", "nan"), ("--save-every", "-1"), ("--split", "1"),
    ("--split", "nan"), ("--sample", "3"), ("--seed", str(2**64)),
])  # fmt: skip
def test_numbers_out_of_range_name_their_flag(at, capsys, flag, value):
    assert f"{flag} must be a" in refused(capsys, "reference", "x", "--out", "r.safetensors", flag, value)
    if flag in ("--batch", "--workers", "--seed"):
        assert f"{flag} must be a" in refused(capsys, "evaluate", "x", "--reference", "r.safetensors", flag, value)
    if flag == "--workers":
        assert f"{flag} must be a" in refused(capsys, "sweep", "classifier.gin", flag, value)


def test_flags_that_would_be_ignored_are_refused(at, capsys):
    np.savez("f.npz", a=np.random.default_rng(0).normal(size=(40, 3)))
    assert main(["reference", "f.npz", "--out", "r.safetensors"]) == 0
    merge, measure = ["reference", "r.safetensors", "--out", "m.safetensors"], ["reference", "f.npz", "--out", "m.npz"]
    judge = ["evaluate", "f.npz", "--reference", "r.safetensors"]
    lines = {
        "--n must be a": [*judge, "--n", "0"],
        "--n is of items to draw from a run": [*judge, "--n", "5"],
        "expected FILE.svg; got 'c.png'": [*judge, "--chart", "c.png"],
        "--battery is of measuring": [*merge, "--battery", "untrained"],
        "--set is of measuring": [*merge, "--set", "a=1"],
        "--per-class is of measuring": [*merge, "--per-class"],
        "--fresh is of measuring": [*merge, "--fresh", "f.npz"],
        "--member says whose moments": [*merge, "--member", "a"],
        "--per-class needs items with classes": [*measure, "--per-class"],
        "leave --size out": [*measure, "--size", "8"],
        "leave --set out": [*measure, "--set", "a=1"],
        "leave one of them out": [*measure, "--fresh", "f.npz", "--split", "0.5"],
        "--bind '': expected 'NAME = VALUE'": ["train", "classifier.gin", "--bind", ""],
    }
    for message, arguments in lines.items():
        assert message in refused(capsys, *arguments)
    with pytest.raises(SystemExit) as caught:
        main(["train", "classifier.gin", "--out", ""])
    assert caught.value.code == 2 and "argument --out: expected a path; got ''" in capsys.readouterr().err


def test_debug_shows_the_traceback(at):
    shown = subprocess.run(
        [sys.executable, "-m", "rdm", "train", "nothing.gin", "--debug"], capture_output=True, text=True, cwd=at
    )
    assert "Traceback" in shown.stderr and "InputError" in shown.stderr


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("frechet", "mmd", "pixels", "digits", "mlp_flow", "untrained"):
        assert re.search(rf"^  {name}\s", printed, re.M), name
    assert main(["list", "objectives"]) == 0
    assert "pixels" not in capsys.readouterr().out
