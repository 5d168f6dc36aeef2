"""Processes of this machine."""

import os
import subprocess
from collections.abc import Callable
from typing import Annotated

from rdm.api import Job, Range, engines
from rdm.engines._train import begun


@engines.register("local")
class Local:
    """Processes of this machine, one thread each where there are several at a time.

    A point's process holds the lock of its folder, which goes with it, however it ends, and outlives a sweep that was
    killed while the process goes on.

    Args:
        workers: points at a time.
    """

    def __init__(self, workers: Annotated[int, Range(least=1, most=256)] = 1):
        self.workers = workers
        self._running: list[subprocess.Popen[bytes]] = []

    def room(self) -> bool:
        """Fewer processes than workers."""
        self._running = [process for process in self._running if process.poll() is None]
        return len(self._running) < self.workers

    def start(self, job: Job, held: int, say: Callable[[str], None]) -> subprocess.Popen[bytes]:
        """A process with a hold of its own on the lock."""
        threads = {} if self.workers == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        try:
            process = begun([str(job.file), "--out", str(job.folder), *job.options], job.folder, threads, held)
        finally:
            os.close(held)
        self._running.append(process)
        return process

    def close(self) -> None:
        """Nothing is kept."""
