"""What surrounds the training loop: the state of a run, its log, and requests to stop."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from rdm.distributed import gather, rank, world_size
from rdm.errors import CorruptFileError, InputError, MismatchError, NonFiniteError
from rdm.files.checkpoint import complete_checkpoints
from rdm.files.records import read_log
from rdm.files.schema import expect
from rdm.files.store import write_text
from rdm.progress import Reporter
from rdm.training.loss import Loss
from rdm.training.resumed import state_of


class Diverged(RuntimeError):
    """A loss or its gradient is not finite while training; the text says at which step and in which term."""


@dataclass
class Skips:
    """Steps that were not taken since something of them was not finite: counted, said, and too many in a row the end.

    Args:
        patience: how many in a row may be left out.
        checkpoints: where the last good one is looked for.
        total, row: left out so far, and since the last step that was taken.
    """

    patience: int
    checkpoints: Path
    total: int = 0
    row: int = 0

    def left_out(self, step: int, error: NonFiniteError, report: Reporter, *, last: bool) -> None:
        """Count a step that was not taken.

        Raises:
            Diverged: it is one too many in a row, or the last, so that no step shows that the update before it was
                sound; the text names the term and the checkpoint to go back to.
        """
        self.total, self.row = self.total + 1, self.row + 1
        if self.row > self.patience or last:
            self.fail(step, error)
        report.say(f"step {step} was not taken: {error}")

    def fail(self, step: int, error: NonFiniteError) -> NoReturn:
        """End the run."""
        kept = complete_checkpoints(self.checkpoints)
        before = f", after {self.row - 1} steps before it that were not taken" if self.row > 1 else ""
        last = f"; the last good checkpoint is {kept[-1]}" if kept else ""
        remedy = "lower the learning rate or clip the gradient"
        raise Diverged(f"step {step}: {error}{before}{last}; {remedy}") from error


def check_finite(values: Mapping[str, float], tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> None:
    """Raise NonFiniteError with the first number or tensor that is not finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    bad += [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise NonFiniteError(f"{bad[0]} is not finite")


def training_state(
    model: nn.Module,
    averaged: AveragedModel | None,
    stepper: torch.optim.Optimizer,
    losses: Sequence[Loss],
    skips: Skips,
    seconds: float,
) -> dict[str, Any]:
    """Everything that the next step depends on; position in the data follows from seed and step."""
    device = next(model.parameters()).device
    cuda = gather(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None
    return {
        "model": model.state_dict(),
        "average": None if averaged is None else averaged.module.state_dict(),
        "averaged": None if averaged is None else averaged.n_averaged,
        "optimizer": stepper.state_dict(),
        "losses": [loss.state() for loss in losses],
        "random": {"cpu": gather(torch.get_rng_state()), "cuda": cuda},
        "skips": [skips.total, skips.row],
        "seconds": seconds,
    }


def restore_state(
    step: int,
    state: dict[str, Any],
    model: nn.Module,
    averaged: AveragedModel | None,
    stepper: torch.optim.Optimizer,
    losses: Sequence[Loss],
    skips: Skips,
) -> float:
    """Inverse of `training_state`; returns the seconds spent before.

    Raises:
        CorruptFileError: an entry is not one of this run at this step.
    """
    device, name = next(model.parameters()).device, f"checkpoint {step:08d}"
    check = state_of(step, model, averaged, stepper, len(losses))
    expect(state, check, name, "delete it to go on from the one before")
    model.load_state_dict(state["model"])
    if averaged is not None:
        averaged.module.load_state_dict(state["average"])
        averaged.n_averaged.copy_(state["averaged"])
    stepper.load_state_dict(state["optimizer"])
    for loss, inner in zip(losses, state["losses"], strict=True):
        try:
            loss.restore(_moved(inner, device))
        except (CorruptFileError, MismatchError) as error:
            raise type(error)(f"{name}: {error}") from error
    if world_size() != len(state["random"]["cpu"]):
        raise InputError(
            f"{name} is of {len(state['random']['cpu'])} processes, there are {world_size()}; resume it with as many"
        )
    torch.set_rng_state(state["random"]["cpu"][rank()])
    if device.type == "cuda" and state["random"]["cuda"] is not None:
        torch.cuda.set_rng_state(state["random"]["cuda"][rank()], device)
    skips.total, skips.row = state["skips"]
    return state["seconds"]


def _moved(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _moved(value, device) for key, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree


def joined(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """What the losses of one step log, as one record: the sum of their "loss", and every number that each has.

    A name that several losses give is followed by the number of its loss: "distance/pixels#1", "distance/pixels#2".
    """
    names = Counter(name for record in records for name in record)
    numbered = {
        f"{name}#{i}" if names[name] > 1 else name: value
        for i, record in enumerate(records, 1)
        for name, value in record.items()
    }
    return {**numbered, "loss": sum(record["loss"] for record in records)}


def check_rates(stepper: torch.optim.Optimizer) -> None:
    """Refuse a learning rate that is not a finite number above 0: it would train nothing, climb or destroy."""
    for group in stepper.param_groups:
        if not 0 < float(group["lr"]) < float("inf"):
            raise InputError(f"the optimizer's lr must be a number above 0 and finite; got {group['lr']!r}")


class Log:
    """log.jsonl: one object a logged step; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, start: int):
        self._path = path
        if rank() > 0:
            return
        kept = [row for row in (read_log(path) if path.exists() else []) if row["step"] <= start]
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def write(self, record: dict[str, float]) -> None:
        """Append one object."""
        if rank() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def last_logged(path: Path) -> dict[str, float]:
    """The newest row of a log."""
    return read_log(path)[-1]
