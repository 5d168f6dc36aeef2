"""Sweeps: every point of a grid of bindings, each trained by a process of its own.

A point lives in the folder that the hash of its operative configuration names. Equal configurations are therefore one
point whatever the grid calls them, an extended grid keeps what it had, and a finished point (one with a result) is
never run again. A lock on the folder, held by the training process itself, keeps two sweeps off one point: it goes
with the process, however that ends, and outlives a sweep that was killed while the process goes on.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from rdm.app import config
from rdm.app.explain import own_text
from rdm.errors import InputError, Interrupted
from rdm.files.records import as_command
from rdm.files.store import digest, lock, write_json, write_text
from rdm.numbers import Range, check
from rdm.progress import Reporter, progress, stop_requests
from rdm.randomness import seeded
from rdm.reports.found import ERROR
from rdm.reports.run import INDEX
from rdm.reports.sweep import print_summary, write_csv
from rdm.reports.sweep_page import write_sweep_report
from rdm.terminal import say

OUTPUT = "output.txt"  # of a point's process


class PointsFailed(RuntimeError):
    """Some points of a sweep failed; the text says how many and what to do."""


class Value(NamedTuple):
    """One value of an axis: a number or a text to show, and what it binds."""

    label: str | int | float
    bindings: dict[str, str]  # text in gin by parameter


class Point(NamedTuple):
    """One point of the grid."""

    labels: dict[str, str | int | float]
    bindings: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Its values in words."""
        return _named(self.labels)


def sweep(
    path: Path,
    out: Path | None,
    *,
    workers: int = 1,
    restricted: bool = False,
    metrics: Sequence[str] | None = None,
) -> Path:
    """Plan, run and report a sweep; returns its folder. See `plan` and `run` for what is raised.

    `metrics` are those of the printed table (see `rdm.reports.sweep.print_summary`).
    """
    check("--workers", workers, Annotated[int, Range(least=1, most=256)])
    out = out or Path("runs") / path.stem
    points = plan(path, out, restricted=restricted)
    try:
        run(path, points, workers=workers, restricted=restricted)
    finally:
        say(f"table: {write_csv(out)}", file=sys.stdout)
        say(f"report: {write_sweep_report(out)}", file=sys.stdout)
        print_summary(out, metrics)
    return out


def axes(grid: Mapping[str, Any]) -> dict[str, list[Value]]:
    """Read the axes of a grid.

    A list is the values of the parameter that the axis is named after. A mapping is points with labels, each a mapping
    from parameters to values: {"wide": {"generators.mlp.width": 512, "generators.mlp.depth": 2}}.

    Raises:
        InputError: an axis of another form, without values, or two axes that bind one parameter.
    """
    found = {axis: list(_values(axis, values)) for axis, values in grid.items()}
    owners: dict[str, str] = {}
    for axis, values in found.items():
        if not values:
            raise InputError(f"axis {axis!r} of rdm.sweep.grid has no values; give it some or take it out")
        for parameter in {name for value in values for name in value.bindings}:
            if owners.setdefault(parameter, axis) != axis:
                raise InputError(f"axes {owners[parameter]!r} and {axis!r} both bind {parameter}; join them into one")
    return found


def _values(axis: str, values: Any) -> Iterator[Value]:
    if isinstance(values, list | tuple):
        texts = [_text(value) for value in values]
        short = [_label(value) for value in values]
        labels = short if len(set(short)) == len(set(texts)) else texts
        for label, text in zip(labels, texts, strict=True):
            yield Value(label, {axis: text})
    elif isinstance(values, dict) and all(isinstance(point, dict) for point in values.values()):
        for label, point in values.items():
            yield Value(str(label), {parameter: _text(value) for parameter, value in point.items()})
    else:
        raise InputError(
            f"axis {axis!r} of rdm.sweep.grid must be a list of values, or a mapping from labels to mappings from "
            f"parameters to values; got {values!r}"
        )


def _text(value: Any) -> str:
    """A value as gin writes it; a text that starts with @ is a reference."""
    return value if isinstance(value, str) and value.startswith("@") else repr(value)


def _label(value: Any) -> str | int | float:
    """Numbers as they are; a reference by its name; other values as gin writes them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = value if isinstance(value, str) else repr(value)
    if not text.startswith("@"):
        return text
    scope, _, name = text[1:].removesuffix("()").rpartition("/")
    return (f"{scope}/" if scope else "") + name.rsplit(".", 1)[-1]


def _named(labels: Mapping[str, str | int | float]) -> str:
    return ", ".join(f"{axis.rsplit('.', 1)[-1]} {label}" for axis, label in labels.items())


def plan(path: Path, out: Path, *, restricted: bool = False) -> list[Point]:
    """Every point of a sweep's file, checked: its configuration is built as training would, then dropped.

    Writes the index that reports read.

    Raises:
        InputError: a name, value or file that any point cannot use; nothing has run then.
    """
    config.load(path, restricted=restricted)
    grid = axes(config.grid())
    points, goals, read = [], {}, set()
    for chosen in itertools.product(*grid.values()):
        labels = {axis: value.label for axis, value in zip(grid, chosen, strict=True)}
        bindings = tuple(f"{name} = {text}" for value in chosen for name, text in value.bindings.items())
        try:
            config.load(path, bindings, restricted=restricted)
            unread = {binding.command for binding in config.unread()}
            bindings = tuple(binding for binding in bindings if binding not in unread)
            read |= {binding.partition(" = ")[0] for binding in bindings}
            config.load(path, bindings, restricted=restricted)
            with seeded(config.seed()):
                evaluation = config.plan().get("evaluation")
        except Exception as error:
            raise InputError(f"{path}, point {_named(labels)!r}: {own_text(error)}") from error
        goals |= {} if evaluation is None else {name: str(goal) for name, goal in evaluation.goals.items()}
        points.append(Point(labels, bindings, out / "points" / digest({}, config.operative())[:16]))
    bound = (name for values in grid.values() for value in values for name in value.bindings)
    if idle := [name for name in bound if name not in read]:
        raise InputError(f"{path}: no point of rdm.sweep.grid reads {idle[0]}; take it out of its axis")
    listed = [{"labels": p.labels, "bindings": p.bindings, "folder": f"points/{p.folder.name}"} for p in points]
    command = as_command("rdm", "sweep", path, "--out", out)
    index = {"file": str(path), "command": command, "axes": list(grid), "goals": goals, "points": listed}
    write_json(out / INDEX, index)
    return points


def run(path: Path, points: list[Point], *, workers: int = 1, restricted: bool = False) -> None:
    """Train the points that have no result, `workers` at a time, one thread each where there are several.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, when the running points have saved their checkpoints.
        PointsFailed: some failed; the rest is finished.
    """
    distinct = {point.folder: point for point in points}
    todo = [point for point in distinct.values() if not _finished(point)]
    work = _Work(path, workers, restricted, todo, total=len(distinct))
    with stop_requests() as stopping, progress(len(distinct), done=len(distinct) - len(todo)) as report:
        if len(todo) < len(distinct):
            report.say(f"{len(distinct) - len(todo)} of {len(distinct)} points are finished already")
        try:
            while work.waiting or work.running:
                if stopping():
                    work.stop()
                    raise Interrupted(
                        f"interrupted with {work.done} of {len(distinct)} points finished; "
                        "the same command goes on with the others"
                    )
                work.start(report)
                work.collect(report)
                time.sleep(0.05)
        finally:
            work.kill()
    if work.failed:
        raise PointsFailed(
            f"{len(work.failed)} of {len(distinct)} points failed, the first with {work.failed[0]!r}; "
            "the same command tries them again"
        )


@dataclass
class _Work:
    """Points that wait and points that run."""

    path: Path
    workers: int
    restricted: bool
    waiting: list[Point]
    total: int
    running: dict[subprocess.Popen[bytes], Point] = field(default_factory=dict)
    began: dict[Path, float] = field(default_factory=dict)  # when points were started, by this sweep
    took: list[float] = field(default_factory=list)  # seconds of those it finished
    failed: list[str] = field(default_factory=list)
    elsewhere: set[Path] = field(default_factory=set)  # said to be in another sweep's hands

    @property
    def done(self) -> int:
        return self.total - len(self.waiting) - len(self.running) - len(self.failed)

    def start(self, report: Reporter) -> None:
        """Fill the free workers with points that no other sweep holds."""
        for point in list(self.waiting):
            if len(self.running) >= self.workers:
                return
            held = lock(point.folder / "lock")
            if held is None:
                if point.folder not in self.elsewhere:
                    self.elsewhere.add(point.folder)
                    report.say(f"{point.name}: runs in another sweep; waiting for it")
                continue
            try:
                self.waiting.remove(point)
                if _finished(point):
                    report.say(f"{point.name}: finished by another sweep")
                    report.update(self.done, {})
                else:
                    self.running[self._spawn(point, held)] = point
                    self.began[point.folder] = time.monotonic()
            finally:
                os.close(held)  # the process has its own hold

    def _spawn(self, point: Point, held: int) -> subprocess.Popen[bytes]:
        (point.folder / ERROR).unlink(missing_ok=True)
        bindings = [part for binding in point.bindings for part in ("--bind", binding)]
        options = ["--out", str(point.folder), "--resume", *(["--restricted"] if self.restricted else [])]
        # The same program: what this process imports, from where it does, and nothing from the working folder.
        search = os.pathsep.join(place or os.getcwd() for place in sys.path)
        environment = {**os.environ, "PYTHONPATH": search}
        if self.workers > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")
        with (point.folder / OUTPUT).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "rdm", "train", str(self.path), *bindings, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(held,),
                start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
            )

    def collect(self, report: Reporter) -> None:
        """Take what has ended."""
        for process, point in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[process]
            if process.returncode == 0 and _finished(point):
                report.say(f"{point.name}: done")
                self.took.append(time.monotonic() - self.began[point.folder])
            else:
                error = _last_error(point, process.returncode)
                write_text(point.folder / ERROR, error + "\n")
                self.failed.append(f"{point.name}: {error}")
                report.say(f"{point.name}: FAILED: {error}")
            report.update(self.done, {"failed": len(self.failed)} if self.failed else {}, left=self.left())

    def left(self) -> float | None:
        """Seconds that the other points will take, as long as those so far; None before the first is done."""
        if not self.took:
            return None
        each = sum(self.took) / len(self.took)
        now = time.monotonic()
        rest = [max(each - (now - self.began[point.folder]), 0.0) for point in self.running.values()]
        free = [0.0] * (self.workers - len(rest))
        ends = sorted([*rest, *free])
        for _ in self.waiting:  # each goes to the worker that is free first
            ends = sorted([ends[0] + each, *ends[1:]])
        return ends[-1]

    def stop(self) -> None:
        """Ask the running points to save and end; wait until they have."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()

    def kill(self) -> None:
        """End what still runs, at once."""
        for process in self.running:
            process.kill()
            process.wait()


def _finished(point: Point) -> bool:
    return (point.folder / "result.json").exists()


def _last_error(point: Point, status: int) -> str:
    """What the process said last, or the signal that ended it."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = (point.folder / OUTPUT).read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("rdm: ") if lines else f"exit status {status} without a word"
