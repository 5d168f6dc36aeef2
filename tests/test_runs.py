"""Runs that survive: signals, damaged checkpoints, two processes at once, ranks that differ, weights that diverge."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

import rdm
from rdm.__main__ import main
from rdm.app.process import terminated_as_interrupted
from rdm.distributed import together, words
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint
from rdm.files.store import lock
from rdm.judging.evaluation import Evaluation
from rdm.losses.matching import Matching
from rdm.progress import stop_requests
from rdm.surviving.joining import started
from rdm.training.run import Diverged
from tests import processes
from tests.test_main import GENERATOR, refused, refused_running
from tests.test_train import CONFIG, run


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gin").write_text(CONFIG)
    (tmp_path / "generator.gin").write_text(GENERATOR)
    return tmp_path


def test_a_folder_in_use_is_refused_and_left_alone(at, capsys):
    held = lock(at / "run" / ".lock")
    before = sorted(at.rglob("*"))
    line = refused(capsys, "train", "x.gin", "--out", "run")
    assert "another process trains in run" in line and sorted(at.rglob("*")) == before
    os.close(held)
    assert main(["train", "x.gin", "--out", "run", "--bind", "rdm.train.steps = 2"]) == 0


def test_what_killed_saves_left_is_removed_and_nothing_else(at):
    left = at / "run" / "checkpoints" / ".00000114.17nm9hv2"
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"half")
    (at / "run" / ".config.gin.abcd_123").write_text("half")
    (at / "run" / ".mine").write_text("whole")
    assert main(["train", "x.gin", "--out", "run", "--bind", "rdm.train.steps = 2"]) == 0
    assert not left.exists() and not (at / "run" / ".config.gin.abcd_123").exists()
    assert (at / "run" / ".mine").exists()


@pytest.mark.parametrize("damage", ["truncated", "no tensors", "no json", "empty"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path, damage):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    expected = run("flow", whole)
    run("flow", hurt)
    before, newest = complete_checkpoints(hurt / "checkpoints")[-2:]
    if damage == "truncated":
        content = (newest / "state.safetensors").read_bytes()
        (newest / "state.safetensors").write_bytes(content[: len(content) // 2])
    for name in {"no tensors": ["state.safetensors"], "no json": ["state.json"]}.get(damage, []):
        (newest / name).unlink()
    if damage == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged .*going on from the checkpoint before it"):
        again = run("flow", hurt, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), again.parameters(), strict=True))
    rows = [json.loads(line) for line in (hurt / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and int(before.name) < len(rows)


def test_no_readable_checkpoint_is_refused(tmp_path):
    run("flow", tmp_path)
    for path in complete_checkpoints(tmp_path / "checkpoints"):
        (path / "state.json").write_text("{")
    with (
        pytest.warns(UserWarning),
        pytest.raises(rdm.errors.InputError, match="no older checkpoint can be read; delete"),
    ):
        run("flow", tmp_path, resume=True)


def test_weights_that_the_last_step_destroyed_are_no_checkpoint(at, capsys):
    bindings = "rdm.train.schedule = @schedules.constant()", "rdm.train.optimizer = @optimizers.sgd"
    words = [x for b in bindings for x in ("--bind", b)]
    common = ["train", "x.gin", "--out", "run", *words, "--bind", "rdm.train.steps = 2"]
    line = refused_running(capsys, *common, "--bind", "optimizers.sgd.lr = 1e38")
    assert "is not finite; lower the learning rate" in line, line
    assert complete_checkpoints(at / "run" / "checkpoints") == []


def test_divergence_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    taken, step_as_ever = [], torch.optim.AdamW.step

    def step(self, closure=None):
        step_as_ever(self, closure)
        taken.append(1)
        for parameter in [p for group in self.param_groups for p in group["params"] if len(taken) == 5]:
            parameter.data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(Diverged, match="is not finite; the last good checkpoint is .*00000004"):
        run("flow", tmp_path, steps=6, checkpoint_every=2)
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")][-1] == "00000004"


def test_a_report_that_was_not_drawn_is_drawn_by_the_next_call(at, capsys):
    assert main(["train", "generator.gin", "--out", "run"]) == 0
    (at / "run" / "report.html").unlink()
    assert main(["train", "generator.gin", "--out", "run", "--resume"]) == 0
    assert (at / "run" / "report.html").exists() and "sw/pixels" in capsys.readouterr().out


def stopped_while_evaluating() -> int:
    Evaluation.__call__ = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM)
    return main(["train", "generator.gin", "--out", "run"])


def test_a_signal_while_evaluating_keeps_the_training_and_the_next_call_evaluates(at):
    process = processes.Command(stopped_while_evaluating, cwd=at)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == ("rdm: interrupted while evaluating; run is trained, --resume evaluates it")
    assert not (at / "run" / "result.json").exists()
    assert main(["train", "generator.gin", "--out", "run", "--resume"]) == 0
    assert (at / "run" / "report.html").exists()


def test_a_full_disk_is_a_sentence(at, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        line = refused_running(capsys, "train", "x.gin", "--out", "run", "--bind", "rdm.train.steps = 2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in line and "--resume" in line and "config.gin" in line, line


def test_alone_everything_together_is_itself():
    assert words("grüße") == ["grüße"]
    with pytest.raises(ValueError, match="mine"), together():
        raise ValueError("mine")


TRAIN = "train", "x.gin", "--out", "run", "--bind", "rdm.train.steps = 3"


def ranks(at: Path, *bindings: str) -> list[tuple[int, str]]:
    """Two ranks, each with its own binding; status and last line of each."""
    port, found = processes.free_port(), []
    started = [
        processes.rdm(*TRAIN, "--bind", binding, cwd=at, **processes.rank_environment(k, 2, port))
        for k, binding in enumerate(bindings)
    ]
    for process in started:
        _, err = process.communicate()
        found.append((process.returncode, err.strip().splitlines()[-1] if err.strip() else ""))
    return found


def test_ranks_that_differ_or_fail_are_told_before_the_first_step(at):
    (a, first), (b, second) = ranks(at, "rdm.train.seed = 0", "rdm.train.seed = 1")
    assert a == b == 2 and first == second and "rank 1 has another configuration than rank 0: " in first
    (a, first), (b, second) = ranks(at, "rdm.train.seed = 0", "generators.mlp_flow.wide = 2")
    assert a == b == 2 and "no parameter 'wide'" in second and first.startswith("rdm: rank 1: "), (first, second)
    assert not (at / "run").exists()


def test_a_run_goes_on_on_another_number_of_ranks(at, capsys):
    (a, _), (b, _) = ranks(at, "rdm.train.seed = 0", "rdm.train.seed = 0")
    assert a == b == 0
    (at / "run" / "result.json").unlink()
    free = ["--bind", "rdm.train.shard = ['blocks.*']"]  # how ranks share the model out may change
    assert main([*TRAIN, "--bind", "rdm.train.seed = 0", *free, "--resume"]) == 0


def test_ctrl_c_at_any_early_moment_is_one_line(at):
    process = processes.rdm("train", "x.gin", "--out", "run", cwd=at)
    processes.until((at / "run" / ".lock").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().splitlines()[-1].startswith("rdm: interrupted"), err


def test_an_interrupt_whose_exception_is_lost_is_a_request_to_stop():
    with terminated_as_interrupted():
        for number in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt):  # and nobody ends, as after a destructor
                os.kill(os.getpid(), number)
        with stop_requests(together=False) as stopping:
            assert stopping()
    with stop_requests(together=False) as stopping:
        assert not stopping()


class Spoilt(torch.nn.Module):
    """Pixels that are not a number in some calls with a gradient or without, as a broken encoder gives them."""

    def __init__(self, spoils):
        super().__init__()
        self.spoils, self.calls = spoils, 0

    def forward(self, items):
        self.calls += 1
        return items.flatten(1) * (float("nan") if self.calls in self.spoils else 1.0)


def spoilt_run(out, spoils, **options):
    encode = rdm.Representation("spoilt", Spoilt(spoils))
    battery = rdm.Battery((rdm.representation("pixels"), encode))
    loss = Matching(rdm.objective("energy"), battery, population=8, memory=rdm.EMA(0.5))
    return run("flow", out, losses=[loss], log_every=1, checkpoint_every=1, keep=10, **options)


def test_a_step_that_is_not_finite_is_named_left_out_and_counted(tmp_path, capsys):
    first = 2  # three calls encode the reference
    spoilt_run(tmp_path / "spoilt", {first + 4}, steps=5)
    assert "step 2 was not taken: generated features of 'spoilt': NaN or infinity in 8 of 8" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "spoilt" / "log.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1] and ["loss" in row for row in rows] == [1, 1, 0, 1, 1]
    before, after, next_one = (read_checkpoint(tmp_path / "spoilt" / "checkpoints" / f"{k:08d}")[1] for k in (2, 3, 4))
    same = [torch.equal(value, after["model"][name]) for name, value in before["model"].items()]
    assert all(same) and not all(torch.equal(v, next_one["model"][n]) for n, v in after["model"].items())
    assert torch.equal(before["losses"][0]["pasts"]["pixels"][0], after["losses"][0]["pasts"]["pixels"][0])


def test_too_many_such_steps_in_a_row_end_the_run_with_a_checkpoint_from_before(tmp_path):
    with pytest.raises(Diverged, match=r"step 4: .*'spoilt'.* after 2 steps before it .*the last good checkpoint is"):
        spoilt_run(tmp_path, set(range(6, 100)), steps=9, patience=2)
    newest = read_checkpoint(complete_checkpoints(tmp_path / "checkpoints")[-1])[1]
    assert all(value.isfinite().all() for value in newest["model"].values()) and newest["skips"] == [2, 2]


def test_a_resumed_run_counts_on(tmp_path):
    spoilt_run(tmp_path, {5, 7}, steps=6)
    whole = (tmp_path / "log.jsonl").read_text()
    assert json.loads(whole.splitlines()[-1])["skipped"] == 2
    shutil.rmtree(tmp_path / "checkpoints" / "00000006")
    spoilt_run(tmp_path, set(), steps=6, resume=True)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 2


def rank_with_nan(number: int, folder: str, port: int) -> None:
    """One of two ranks, of which the second one's encoder breaks once, in one pass or in chunks."""
    os.environ |= processes.rank_environment(number, 2, port)
    with started():
        found = []
        for chunk in (None, 3):
            torch.manual_seed(0)  # equal parameters on both
            encode = rdm.Representation("spoilt", Spoilt({2} if number else set()))
            population = rdm.Population("energy", encode, torch.rand(20, 1, 4, 4), chunk=chunk)
            generator = torch.nn.Sequential(
                torch.nn.Linear(4, 16), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (1, 4, 4))
            )
            noise = torch.randn(5 if number else 2, 4)
            for _ in range(3):
                try:
                    population.backward(generator, noise)
                    found.append("")
                except rdm.errors.NonFiniteError as error:
                    found.append(str(error))
        Path(folder, f"{number}.json").write_text(json.dumps(found))


def test_what_is_not_finite_on_one_rank_is_left_out_on_all(tmp_path):
    processes.ranks(rank_with_nan, (str(tmp_path), processes.free_port()), 2)
    healthy, broken = (json.loads((tmp_path / f"{k}.json").read_text()) for k in range(2))
    assert [bool(text) for text in healthy] == [bool(text) for text in broken]
    assert any(healthy) and all(text == f"rank 1: {other}" for text, other in zip(healthy, broken, strict=True) if text)
