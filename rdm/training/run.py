"""What surrounds the training loop: rates, steps left out, and the log with those who follow it."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NoReturn, Protocol, runtime_checkable

import torch

from rdm.distributed import rank
from rdm.errors import InputError, NonFiniteError, first_line
from rdm.files.records import read_log
from rdm.files.store import read_text, write_text
from rdm.progress import Reporter
from rdm.scaling.loss_scale import Overflow
from rdm.surviving.saving import spared
from rdm.terminal import say
from rdm.timing.regions import region


class Here:
    """A device that torch finds on this machine."""

    def __contains__(self, device: object) -> bool:
        assert isinstance(device, str | torch.device), "its type is checked first"
        try:
            return torch.empty(0, device=device).device.type != "meta"
        except (RuntimeError, AssertionError):
            return False

    def __str__(self) -> str:
        return "that names a device of this machine"


Device = Annotated[str | torch.device, Here()]


class Diverged(RuntimeError):
    """A loss or its gradient is not finite while training; the text says at which step and in which term."""


@dataclass
class Skips:
    """Steps that were not taken since something of them was not finite: counted, said, and too many in a row the end.

    Args:
        patience: how many in a row may be left out.
        last: gives the last good checkpoint.
        total, row: left out so far, and since the last step that was taken.
    """

    patience: int
    last: Callable[[], Path | None]
    total: int = 0
    row: int = 0

    def left_out(self, step: int, error: NonFiniteError, report: Reporter, *, last: bool) -> None:
        """Count a step that was not taken; one for the sake of the loss scale is said alone.

        Raises:
            Diverged: it is one too many in a row, or the last, so that no step shows that the update before it was
                sound; the text names the term and the checkpoint to go back to.
        """
        if not isinstance(error, Overflow):
            self.total, self.row = self.total + 1, self.row + 1
            if self.row > self.patience or last:
                self.fail(step, error)
        report.say(f"step {step} was not taken: {error}")

    def fail(self, step: int, error: NonFiniteError) -> NoReturn:
        """End the run."""
        kept = self.last()
        before = f", after {self.row - 1} steps before it that were not taken" if self.row > 1 else ""
        last = f"; the last good checkpoint is {kept}" if kept else ""
        remedy = "lower the learning rate or clip the gradient"
        raise Diverged(f"step {step}: {error}{before}{last}; {remedy}") from error


def check_finite(values: Mapping[str, float], tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> None:
    """Raise NonFiniteError with the first number or tensor that is not finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    bad += [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise NonFiniteError(f"{bad[0]} is not finite")


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


class Rates:
    """Learning rates of an optimizer's groups: the given ones times a factor of the share of the run that is over."""

    def __init__(self, stepper: torch.optim.Optimizer, factor: Callable[[float], float]):
        check_rates(stepper)
        self._stepper, self._factor = stepper, factor
        self._base = [float(group["lr"]) for group in stepper.param_groups]  # a checkpoint puts groups of its own

    @property
    def largest(self) -> float:
        """The largest of the given ones."""
        return max(self._base)

    def at(self, share: float) -> None:
        """Put those of a share of the run."""
        for group, rate in zip(self._stepper.param_groups, self._base, strict=True):
            group["lr"] = rate * self._factor(share)


@runtime_checkable
class Tracker(Protocol):
    """Another program that gets the rows of a run's log, on rank 0; what it raises is said and ends only itself."""

    def start(self, config: str, out: Path, step: int) -> None:
        """Before the first row: the configuration, the run's folder, and after how many steps the run goes on.

        What was logged of later steps, before the run was resumed, is void.
        """
        ...

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """One row."""
        ...

    def finish(self) -> None:
        """After the last row, also where the run ends early."""
        ...


class Log:
    """log.jsonl: one object a logged step; a resumed run drops what came after its checkpoint.

    Rows that find the disk full wait in memory for the next ones. `first` has the first number of every name. With the
    number of items a step, every row says how many there were a second since the row before.
    """

    def __init__(self, path: Path, start: int, trackers: Sequence[Tracker] = (), items: int | None = None):
        self._path, self._waiting, self._items = path, "", items
        self._before = start, time.monotonic()
        self.shown: Callable[[str], object] = say
        self.first, self._trackers = dict[str, float](), list[Tracker]()
        if rank() > 0:
            return
        kept = [row for row in (read_log(path) if path.exists() else []) if row["step"] <= start]
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))
        for row in kept:
            self.first = {**row, **self.first}
        self._trackers += trackers
        config = path.with_name("config.gin")
        text = read_text(config) if config.exists() else ""
        self._track(lambda tracker: tracker.start(text, path.parent, start))

    @region("log")
    def write(self, record: Mapping[str, float]) -> None:
        """Append one object."""
        now, (step, before) = time.monotonic(), self._before
        if self._items is not None and now > before:
            record = {**record, "items_per_second": self._items * (record["step"] - step) / (now - before)}
        self._before = int(record["step"]), now
        self._waiting += json.dumps(record) + "\n"
        with spared(f"the row of step {record['step']:.0f} in {self._path}", self.shown):
            self.flush()
        if rank() == 0:
            self.first = {**record, **self.first}
            self._track(lambda tracker: tracker.log(int(record["step"]), record))

    def close(self) -> None:
        """Let the trackers finish."""
        self._track(lambda tracker: tracker.finish())

    def _track(self, tell: Callable[[Tracker], object]) -> None:
        """Tell the trackers; one that fails is left out from then on, and the run goes on."""
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                self.shown(f"the tracker {name} failed and gets no more rows: {first_line(error)}; log.jsonl has all")

    def flush(self) -> None:
        """Append what waits, all of it or nothing.

        Raises:
            OSError: it cannot be written, or the file is gone.
        """
        if rank() == 0 and self._waiting:
            with self._path.open("r+b", buffering=0) as file:
                end, left = file.seek(0, os.SEEK_END), self._waiting.encode()
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError as error:
                    file.truncate(end)
                    raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._waiting = ""


def last_logged(path: Path) -> dict[str, float]:
    """The newest row of a log."""
    return read_log(path)[-1]
