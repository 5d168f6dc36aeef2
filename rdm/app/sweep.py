"""Sweeps: every point of a grid of bindings, each trained by an engine (`rdm.sweeping.engine`).

A point lives in the folder that the hash of its operative configuration names. Equal configurations are therefore one
point whatever the grid calls them, an extended grid keeps what it had, and a finished point (one with a result) is
never run again. A lock on the folder, held by the engine that trains it, keeps two sweeps off one point.
"""

import inspect
import itertools
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from rdm.app import bindings, config
from rdm.app.explain import own_text
from rdm.errors import InputError, Interrupted
from rdm.files.records import as_command
from rdm.files.store import digest, lock, write_json, write_text
from rdm.numbers import Positive, Range, check
from rdm.progress import Reporter, progress, stop_requests
from rdm.randomness import seeded
from rdm.registry import engines
from rdm.reports.found import ERROR
from rdm.reports.run import INDEX
from rdm.reports.sweep import print_summary, write_csv
from rdm.reports.sweep_page import write_sweep_report
from rdm.sweeping.engine import OUTPUT, Engine, Job, Running
from rdm.sweeping.grid import axes, named
from rdm.terminal import say


class PointsFailed(RuntimeError):
    """Some points of a sweep failed; the text says how many and what to do."""


class Point(NamedTuple):
    """One point of the grid."""

    labels: dict[str, str | int | float]
    bindings: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Its values in words."""
        return named(self.labels)


def sweep(
    path: Path,
    out: Path | None,
    *,
    engine: str = "local",
    given: Mapping[str, Any] | None = None,
    restricted: bool = False,
    metrics: Sequence[str] | None = None,
) -> Path:
    """Plan, run and report a sweep; returns its folder. See `plan` and `run` for what is raised.

    `engine` names what trains the points, and is built of what is `given` to it by flags, and of rdm.sweep.resources.
    `metrics` are those of the printed table (see `rdm.reports.sweep.print_summary`).
    """
    given = dict(given or {})
    check("--workers", given.get("workers", 1), Annotated[int, Range(least=1, most=256)])
    _check_flags(engine, given)
    out = out or Path("runs") / path.stem
    points = plan(path, out, restricted=restricted)
    built = _engine(engine, given)
    try:
        run(path, points, built, restricted=restricted)
    finally:
        say(f"table: {write_csv(out)}", file=sys.stdout)
        say(f"report: {write_sweep_report(out)}", file=sys.stdout)
        print_summary(out, metrics)
    return out


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
            raise InputError(f"{path}, point {named(labels)!r}: {own_text(error)}") from error
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


def _check_flags(engine: str, given: Mapping[str, Any]) -> None:
    """Refuse what an engine does not take, with those that do.

    Raises:
        InputError: a name, flag or binding that is of none, or of another engine.
    """
    taken = inspect.signature(engines[engine].build).parameters
    for name in given:
        if name not in taken:
            said = "rdm.sweep.resources" if name == "resources" else f"--{name}"
            takers = [each for each, entry in engines.items() if name in inspect.signature(entry.build).parameters]
            raise InputError(f"{said} is not of --engine {engine}; of {', '.join(takers)} it is; take it out")


def _engine(name: str, given: Mapping[str, Any]) -> Engine:
    """The engine, with the resources that the configuration asks for."""
    resources = config.value("rdm.sweep.resources")
    check("rdm.sweep.resources", resources, Mapping[str, Positive] | None)
    given = {**given, **({} if resources is None else {"resources": resources})}
    _check_flags(name, given)
    return engines.build(name, **given)


def run(path: Path, points: list[Point], engine: Engine, *, restricted: bool = False) -> None:
    """Train the points that have no result, as many at a time as the engine has room for, and close the engine.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, when the running points have saved their checkpoints.
        PointsFailed: some failed; the rest is finished.
    """
    distinct = {point.folder: point for point in points}
    todo = [point for point in distinct.values() if not _finished(point)]
    work = _Work(path, engine, restricted, todo, total=len(distinct))
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
            engine.close()
    if work.failed:
        raise PointsFailed(
            f"{len(work.failed)} of {len(distinct)} points failed, the first with {work.failed[0]!r}; "
            "the same command tries them again"
        )


@dataclass
class _Work:
    """Points that wait and points that run."""

    path: Path
    engine: Engine
    restricted: bool
    waiting: list[Point]
    total: int
    running: list[tuple[Point, Running]] = field(default_factory=list)
    began: dict[Path, float] = field(default_factory=dict)  # when points were started, by this sweep
    took: list[float] = field(default_factory=list)  # seconds of those it finished
    failed: list[str] = field(default_factory=list)
    elsewhere: set[Path] = field(default_factory=set)  # said to be in another sweep's hands

    @property
    def done(self) -> int:
        return self.total - len(self.waiting) - len(self.running) - len(self.failed)

    def start(self, report: Reporter) -> None:
        """Hand the engine points that no other sweep holds, while it has room."""
        for point in list(self.waiting):
            if not self.engine.room():
                return
            held = lock(point.folder / "lock")
            if held is None:
                if point.folder not in self.elsewhere:
                    self.elsewhere.add(point.folder)
                    report.say(f"{point.name}: runs in another sweep; waiting for it")
                continue
            self.waiting.remove(point)
            if _finished(point):
                os.close(held)
                report.say(f"{point.name}: finished by another sweep")
                report.update(self.done, {})
            else:
                (point.folder / ERROR).unlink(missing_ok=True)
                self.running.append((point, self.engine.start(self._job(point), held, report.say)))
                self.began[point.folder] = time.monotonic()

    def _job(self, point: Point) -> Job:
        bound = [part for binding in point.bindings for part in ("--bind", binding)]
        options = (*bound, "--resume", *(["--restricted"] if self.restricted else []))
        return Job(point.name, point.folder, self.path, bindings.read(self.path, lambda *_: None).text, options)

    def collect(self, report: Reporter) -> None:
        """Take what has ended."""
        for point, process in list(self.running):
            status = process.poll()
            if status is None:
                continue
            self.running.remove((point, process))
            if status == 0 and _finished(point):
                report.say(f"{point.name}: done")
                self.took.append(time.monotonic() - self.began[point.folder])
            else:
                error = _last_error(point, status)
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
        rest = [max(each - (now - self.began[point.folder]), 0.0) for point, _ in self.running]
        free = [0.0] * (self.engine.workers - len(rest))
        ends = sorted([*rest, *free])
        for _ in self.waiting:  # each goes to the worker that is free first
            ends = sorted([ends[0] + each, *ends[1:]])
        return ends[-1]

    def stop(self) -> None:
        """Ask the running points to save and end; wait until they have."""
        for _, process in self.running:
            process.terminate()
        for _, process in self.running:
            process.wait()

    def kill(self) -> None:
        """End what still runs, at once."""
        for _, process in self.running:
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
