"""Processes of the tests' own, forked from one server that has imported rdm: a start costs .1 s instead of 4.

Each is a fresh process to what it runs, without the tests' checks of shapes, and can be signalled and killed.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

OWN = multiprocessing.get_all_start_methods()[0]  # the system's default
SERVER = multiprocessing.get_context("forkserver")
ROOMS = [f"rdm.app.{name}" for name in ("commands", "encoding", "judging", "sampling", "sweep")]
SERVER.set_forkserver_preload([*ROOMS, "hypothesis", "pytest", "torch._dynamo"])  # optimizers import the last one late


class Command:
    """A call in a process and session of its own, in the manner of `subprocess.Popen`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, cwd: Path, **environment: str):
        _running()
        self._said = Path(tempfile.mkdtemp(prefix="rdm-test-said-"))
        given = (function, arguments, str(cwd), {**os.environ, **environment}, self._said)
        self._process = SERVER.Process(target=_called, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Exit status once it has ended.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it said on standard output and error, once it has ended."""
        self.wait(timeout)
        return (self._said / "1").read_text(), (self._said / "2").read_text()

    def family(self) -> list[int]:
        """It and the processes that it started, as far as they live: all of its session."""
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _session(stat) == self.pid]

    def send_signal(self, number: int) -> None:
        """To the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL, with what it started; over once all are gone, and the locks that they held."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it ended, or has no session of its own yet
            self.send_signal(signal.SIGKILL)
        self.wait()
        while self.family():
            time.sleep(0.01)


def module(name: str, *arguments: str) -> None:
    """What `python -m NAME ARGUMENTS` does."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def rdm(*arguments: str, cwd: Path, **environment: str) -> Command:
    """`rdm ARGUMENTS` in a process of its own."""
    return Command(module, "rdm", *arguments, cwd=cwd, **environment)


def rdm_on_ranks(*arguments: str, cwd: Path, count: int = 2) -> list[Command]:
    """`rdm ARGUMENTS` on some ranks, as torchrun starts them."""
    port = free_port()
    return [rdm(*arguments, cwd=cwd, **rank_environment(rank, count, port)) for rank in range(count)]


def ranks(function: Callable[..., None], arguments: tuple, count: int) -> None:
    """Call function(rank, *arguments) in `count` processes; an exception of one is raised here."""
    _running()
    given = (function, *arguments)
    torch.multiprocessing.start_processes(_on_a_rank, given, nprocs=count, start_method="forkserver")


def rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun says to a rank."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(reached: Callable[[], Any], process: Command, seconds: float = 120) -> None:
    """Wait for something, as long as the process runs."""
    deadline = time.monotonic() + seconds
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _session(stat: Path) -> int:
    """Session of a process by its line in /proc; 0 for one that is gone."""
    try:
        state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return 0
    return 0 if state == "Z" else int(session)


def _running() -> None:
    """Start the server where none runs, with the modules that this process finds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def _on_a_rank(rank: int, function: Callable[..., None], *arguments: Any) -> None:
    multiprocessing.set_start_method(OWN, force=True)
    torch.set_num_threads(1)
    function(rank, *arguments)


def _called(function: Callable, arguments: tuple, cwd: str, environment: dict[str, str], said: Path) -> None:
    multiprocessing.set_start_method(OWN, force=True)  # of what it starts itself; it would be the server's
    os.setsid()
    os.environ.clear()
    os.environ |= environment
    os.chdir(cwd)
    for stream in (1, 2):
        os.dup2(os.open(said / str(stream), os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
