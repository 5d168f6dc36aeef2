"""What the command line does, as functions: train, evaluate a run, draw its report."""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rdm
from rdm.app import config
from rdm.app.process import cache_folder
from rdm.app.sampling import device
from rdm.distributed import barrier, rank, together, words, world_size
from rdm.errors import InputError, Interrupted, MismatchError
from rdm.files.checkpoint import complete_checkpoints, is_run, load_weights
from rdm.files.pictures import save_compared
from rdm.files.records import PROVENANCE, as_command, note_session
from rdm.files.store import digest, lock, read_text, remove_temporaries, write_json, write_text
from rdm.generators.protocol import Generator
from rdm.judging.evaluation import REAL, Judge, table
from rdm.matching.metric import Metric
from rdm.randomness import seeded
from rdm.reports.run import INDEX, read_result, write_report
from rdm.reports.sweep import print_summary
from rdm.reports.sweep_page import write_sweep_report
from rdm.scaling.sharding import is_sharded
from rdm.surviving.ranks import started
from rdm.terminal import print_table, say
from rdm.timing.regions import WORK, Profile, profiled
from rdm.training.loop import train
from rdm.training.run import last_logged

RESULT, REPORT, PROFILE = "result.json", "report.html", "profile.json"
COLUMNS = {"": "this run"}
RATIOS = "distances are ratios to fresh real data: 1, less is better; "


def train_run(
    path: Path, bindings: Sequence[str], out: Path | None, *, resume: bool, restricted: bool, profile: bool = False
) -> Path:
    """Train what the gin file says, evaluate it where it says so, write result and report; returns the run folder.

    With `profile`, where the time of a step of this process's rank 0 went is printed and written to profile.json.

    Raises:
        InputError: the folder holds a run already and `resume` was not asked for, or another process trains in it.
        MismatchError: resuming under another configuration, or ranks of unlike ones.
    """
    out = out or Path("runs") / path.stem
    with started():
        with together():
            config.load(path, bindings, restricted=restricted)
            if not resume and _begun(out):
                raise InputError(f"{out} holds a run already; give --resume to go on with it, or another --out")
        with seeded(config.seed()):
            with together():
                arguments = config.plan(alone=True)
                evaluation = arguments.pop("evaluation", None)
                text = config.operative()
                _check_same_configuration(out, text)
            _check_ranks_alike(text)
            binds = [word for binding in bindings for word in ("--bind", binding)]
            command = as_command("rdm", "train", path, *binds, "--out", out, *(["--resume"] if resume else []))
            with _alone_in(out):
                with _profiled(out, arguments) if profile else nullcontext():
                    _train(arguments, evaluation, out, text, command, resume=resume)
    return out


def _train(
    arguments: dict[str, Any], evaluation: Judge | None, out: Path, text: str, command: str, *, resume: bool
) -> None:
    """Train what is not trained yet, then evaluate and report what is missing."""
    finished = resume and (out / RESULT).exists()
    if not finished:

        def prepared() -> None:
            if rank() == 0:
                write_text(out / "config.gin", text)
                if not (resume and _begun(out)):
                    (out / PROVENANCE).unlink(missing_ok=True)
                note_session(out, command, str(arguments.get("device", "cpu")), _versions(), ranks=world_size())
            barrier()

        torch.manual_seed((config.seed() * 1_000_003 + rank()) % 2**63)
        model = train(**arguments, out=out, resume=resume, cache=cache_folder(), prepared=prepared)
        if rank() == 0 or is_sharded(model):
            began = time.monotonic()
            try:
                metrics = _evaluate(evaluation, model, out)
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted while evaluating; {out} is trained, --resume evaluates it") from None
            seconds = last_logged(out / "log.jsonl")["seconds"] + time.monotonic() - began
            if rank() == 0:
                _write_result(out, metrics, arguments["steps"], seconds, config.seed(), text)
    elif (out / REPORT).exists():
        _say(f"{out} is finished; nothing to do")
    if rank() == 0:
        if not (finished and (out / REPORT).exists()):
            write_report(out)
        _print_result(out)


@contextmanager
def _profiled(out: Path, arguments: dict[str, Any]) -> Iterator[None]:
    """Time the regions of a run; however it ends, rank 0 says where the time went."""
    taken = Profile(cuda=str(arguments.get("device", "cpu")).startswith("cuda"))
    try:
        with profiled(taken):
            yield
    finally:
        if rank() == 0 and taken.steps:
            write_json(out / PROFILE, taken.record())
            total, worked = sum(taken.seconds.values()), any(name.startswith(WORK) for name in taken.seconds)
            share = f", {taken.outside:.1%} outside generator, encoders and distances" if worked else ""
            print_table(
                ["part of a step", "times a step", "ms a step", "share"],
                taken.rows(),
                caption=f"{taken.steps:,} steps of {1000 * total / taken.steps:.3g} ms{share}",
                right=[1, 2, 3],
                unbroken=[0, 1, 2, 3],
            )


def _check_ranks_alike(text: str) -> None:
    """Refuse ranks whose operative configurations differ, on all of them."""
    mine, *others = words(text)
    for number, other in enumerate(others, 1):
        if changed := sorted(set(mine.splitlines()) ^ set(other.splitlines())):
            raise MismatchError(
                f"rank {number} has another configuration than rank 0: {changed[0]!r} is on one of them only; "
                "start every rank with the same file and bindings"
            )


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold a run folder against other processes, without what killed ones left half written in it."""
    held = None
    try:
        with together():
            if rank() == 0:
                held = lock(out / ".lock")
                if held is None:
                    raise InputError(f"another process trains in {out}; wait for it, or give another --out")
                for folder in (out, out / "samples", out / "checkpoints"):
                    remove_temporaries(folder)
        yield
    finally:
        if held is not None:
            os.close(held)


def evaluate_run(folder: Path, json: Path | None, *, trust_config: bool = False, average: str | None = None) -> None:
    """Evaluate a run's newest checkpoint with the evaluation of its own configuration; print, or write JSON.

    `average` names a weight average, as in `rdm.app.sampling.trained`.
    """
    if not is_run(folder):
        raise InputError(
            f"expected a run at {folder} (config.gin and a checkpoint); there is none; to judge samples give "
            "--reference FILE"
        )
    config.load_run(folder, trusted=trust_config)
    with seeded(config.seed()):
        arguments = config.plan()
        evaluation, model = arguments.get("evaluation"), arguments["model"]
        if evaluation is None:
            raise InputError(f"{folder}/config.gin binds no rdm.train.evaluation; nothing to measure")
        load_weights(model, str(folder), entry=average)
        metrics = _evaluate(evaluation, model.to(device()).eval(), folder)
    if json is not None:
        write_json(json, {name: metric._asdict() for name, metric in metrics.items()})
    _print_metrics(metrics)


def draw_report(folder: Path, metrics: Sequence[str] | None = None) -> Path:
    """Draw report.html of a run folder, at any time of the run, or of a sweep's; returns its path.

    With `metrics`, a sweep's table of these is printed too.
    """
    if (folder / INDEX).is_file():
        if metrics is not None:
            print_summary(folder, metrics)
        return write_sweep_report(folder)
    if metrics is not None:
        raise InputError(f"--metrics is of a sweep's table; {folder} is no sweep; leave it out")
    _existing(folder / "log.jsonl")
    return write_report(folder)


def _begun(out: Path) -> bool:
    """Whether a run folder holds work that could be lost; a run that failed before its first checkpoint does not."""
    return (out / RESULT).exists() or bool(complete_checkpoints(out / "checkpoints"))


def _check_same_configuration(out: Path, text: str) -> None:
    path = out / "config.gin"
    if not _begun(out) or (begun := _without_shards(read_text(path))) == (text := _without_shards(text)):
        return
    before, now = (set(t.splitlines()) for t in (begun, text))
    changed = sorted(line for line in before ^ now if line.strip() and not line.startswith("#"))
    was = next((line for line in changed if line in before), "(absent)")
    is_now = next((line for line in changed if line in now), "(absent)")
    raise MismatchError(f"{out} was begun with {was!r}; now {is_now!r}; restore the configuration or use another --out")


def _without_shards(text: str) -> str:
    """A configuration but for how the model is shared out over ranks, which changes nothing that is trained."""
    return re.sub(r"^train\.shard = .*\n(?:[ \t]+.*\n)*", "", text, flags=re.MULTILINE)


def _evaluate(evaluation: Judge | None, model: nn.Module, out: Path) -> dict[str, Metric]:
    if evaluation is None:
        return {}
    if not isinstance(model, Generator):
        raise InputError(f"an evaluation measures a generator; got {type(model).__name__}")
    _say("evaluating")
    pictures = evaluation.pictures(model)
    if rank() == 0:
        save_compared(out / "samples", pictures)
    return evaluation(model)


def _write_result(out: Path, metrics: dict[str, Metric], steps: int, seconds: float, seed: int, text: str) -> None:
    write_json(
        out / RESULT,
        {
            "metrics": {name: metric._asdict() for name, metric in metrics.items()},
            "steps": steps,
            "seconds": round(seconds, 3),
            "seed": seed,
            "versions": _versions(),
            "config_sha256": digest({}, text),
        },
    )


def _versions() -> dict[str, str]:
    return {"rdm": rdm.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}


def _print_result(out: Path) -> None:
    metrics = read_result(out / RESULT, "metrics")[1]
    if metrics:
        _print_metrics(metrics)
    if (out / REPORT).exists():
        say(f"report: {out / 'report.html'}", file=sys.stdout)


def _print_metrics(metrics: dict[str, Metric]) -> None:
    compared = list(dict.fromkeys(name.split(": ")[0] for name in metrics if ": " in name))
    columns = [*compared, ""]
    print_table(
        ["metric", *(COLUMNS.get(c, c) for c in columns)],
        table(metrics, columns),
        caption=f"{RATIOS if REAL in compared else ''}[95 % intervals]",
        unbroken=[0],
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"expected a run with {path}; there is none")
    return path


def _say(line: str) -> None:
    if rank() == 0:
        say(line)
