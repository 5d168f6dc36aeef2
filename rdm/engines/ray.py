"""Tasks of a Ray cluster, on as many machines as it has."""

import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from rdm.api import InputError, Job, Positive, Range, engines, first_line, require, write_text
from rdm.engines._train import OUTPUT, PATIENCE, WANTED, packed, trained, unpack

TRIES = 3  # that a point whose worker was lost is taken up again
ANSWER = 10.0  # seconds that a cluster may take to answer
SETTINGS = (
    b"\x04"  # the kind of HTTP/2's first frame (RFC 9113, 3.4), by which Ray's server is told from others at once
)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00" + SETTINGS + bytes(5)


@engines.register("ray", needs="ray")
class Ray:
    """Tasks of a Ray cluster, one a point, on every machine that has what a point needs.

    A point is trained in the sweep's folder where the machine sees it; else in a folder of its own, which is fetched
    when the point has ended. One whose worker was lost is taken up again, up to three times: from its newest
    checkpoint in a shared folder, from the beginning in another. The machines need rdm and what the points read.

    Args:
        address: HOST:PORT of a cluster that this machine is part of; by default RAY_ADDRESS, or the one that runs here.
        workers: points at a time at most; what the machines have resources for may be fewer.
        resources: what a point needs, as Ray calls it: CPU (1 by default), GPU, memory in bytes, or names of your own.

    Raises:
        InputError: Ray is not installed; no cluster answers; no machine of it has the resources, at the beginning or
            for a minute later on.
        ConnectionError: Ray ended on this machine.
    """

    def __init__(
        self,
        address: str = "auto",
        workers: Annotated[int, Range(least=1, most=256)] = 256,
        resources: Mapping[str, Positive] | None = None,
    ):
        self._ray = require("ray", owner="--engine ray", extra="ray")
        self._most, self._needs = workers, {"CPU": 1, **(resources or {})}
        _connect(self._ray, address)
        self._points: list[_Point] = []
        self._fitted = self._looked = time.monotonic()
        self._places = self._counted()
        try:
            if not self._places:
                raise InputError(self._unfit())
            self._task = _task(self._ray, self._needs)
        except InputError:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """As many as the machines have the resources for that are there now."""
        return max(1, min(self._most, self._places))

    def room(self) -> bool:
        """Fewer points than workers."""
        self._points = [point for point in self._points if not point.ended]
        return len(self._points) < self.workers

    def start(self, job: Job, held: int, say: Callable[[str], None]) -> "_Point":
        """Hand a point to the cluster."""
        self._points.append(_Point(self._ray, self._task, self._watch, job, held, say))
        return self._points[-1]

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _counted(self) -> int:
        """How many points the machines can hold at a time."""
        return sum(min(int(node.get(name, 0) / n) for name, n in self._needs.items()) for node in self._nodes())

    def _unfit(self) -> str:
        own = ("node:", "object_store_memory")
        there = [{name: n for name, n in node.items() if not name.startswith(own)} for node in self._nodes()]
        return (
            f"no machine of the Ray cluster has {self._needs}, which a point needs (rdm.sweep.resources); "
            f"they have {', '.join(map(str, there)) or 'nothing'}; ask for less, or add a machine"
        )

    def _watch(self) -> None:
        """Give up when no machine has had what points need for a minute."""
        now = time.monotonic()
        if now - self._looked < ANSWER / 2:
            return
        self._looked, self._places = now, self._counted()
        if self._places:
            self._fitted = now
        elif now - self._fitted > PATIENCE:
            raise InputError(self._unfit())


class _Point:
    """A point that a task trains."""

    def __init__(self, ray: Any, task: Any, watch: Callable[[], None], job: Job, held: int, say: Callable[[str], None]):
        self._ray, self._task, self._watch, self._job, self._held, self._say = ray, task, watch, job, held, say
        self._status: int | None = None
        self._stopping, self._lost = False, 0
        self._token = uuid.uuid4().hex  # by which a machine that sees the folder knows it
        os.ftruncate(held, 0)
        os.pwrite(held, self._token.encode(), 0)
        os.fsync(held)
        self._submit()

    @property
    def ended(self) -> bool:
        """Whether `poll` has said so."""
        return self._status is not None

    def _submit(self, sent: bytes | None = None) -> None:
        job = self._job
        place = str(job.folder.resolve()), self._token, os.getcwd()
        self._ref = self._task.remote(job.file.name, job.text, job.options, *place, sent)

    def poll(self) -> int | None:
        """Exit status of its `rdm train`; None while it goes on."""
        if self._status is None and self._ray.wait([self._ref], timeout=0)[0]:
            self._status = self._ended()
            if self._status is not None:
                os.close(self._held)
        elif self._status is None:
            self._watch()
        return self._status

    def wait(self) -> int:
        """As `poll`, once it has ended."""
        while (status := self.poll()) is None:
            time.sleep(0.05)
        return status

    def terminate(self) -> None:
        """Ask it to save and end."""
        self._stopping = True
        self._ray.cancel(self._ref)

    def kill(self) -> None:
        """End its worker, and so its process."""
        self._stopping = True
        self._ray.cancel(self._ref, force=True)

    def _ended(self) -> int | None:
        """Take what the task gave; None if the point goes on in another."""
        errors = self._ray.exceptions
        try:
            status, given = self._ray.get(self._ref)
        except errors.TaskCancelledError:
            return -signal.SIGTERM
        except errors.RayTaskError as error:
            return self._failed(f"{type(error.cause).__name__}: {first_line(error.cause)}")
        except errors.LocalRayletDiedError as error:
            if self._stopping:
                return -signal.SIGKILL
            raise ConnectionError(
                "Ray ended on this machine; when it is there again, the same command goes on"
            ) from error
        except errors.RayError as error:
            return self._again(first_line(error).partition(". ")[0])  # advice for Ray's own tools comes after it
        if status == WANTED:
            self._submit(packed(self._job.folder))
            return None
        if given is not None:
            unpack(given, self._job.folder)
        return status

    def _again(self, why: str) -> int | None:
        if self._stopping:
            return -signal.SIGKILL
        self._lost += 1
        if self._lost > TRIES:
            return self._failed(f"its worker was lost {self._lost} times, last since: {why}")
        self._say(f"{self._job.name}: its worker was lost ({why}); taken up again")
        self._submit()
        return None

    def _failed(self, why: str) -> int:
        write_text(self._job.folder / OUTPUT, why + "\n")
        return 1


def _task(ray: Any, needs: Mapping[str, float]) -> Any:
    """The task of a point, which Ray itself never repeats: whoever waits for it is told."""
    named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    own = {keyword: needs[name] for name, keyword in named.items() if name in needs}
    others = {name: n for name, n in needs.items() if name not in named}
    try:
        return ray.remote(trained).options(
            **own, resources=others, max_retries=0, scheduling_strategy="SPREAD", name="rdm train"
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"rdm.sweep.resources = {dict(needs)} is none for Ray: {first_line(error)}") from error


def _connect(ray: Any, address: str) -> None:
    """Join a cluster as a driver, without its handlers of signals."""
    if address != "auto":
        _reach(address)
    try:
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds, by what is wrong
        there = "running here" if address == "auto" else f"at {address} that this machine is part of"
        raise InputError(
            f"expected a Ray cluster {there} ({first_line(error).partition('. ')[0]}); `ray start --head` starts one, "
            "`ray start --address HOST:PORT` joins it, --address names it"
        ) from error


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"--address must be HOST:PORT of a Ray cluster; got {address!r}")
    try:
        with socket.create_connection((host, int(port)), ANSWER) as server:
            server.sendall(HELLO)
            said = server.recv(9)
        if said[3:4] != SETTINGS:
            raise OSError("what answers there is another program")
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address} ({error}); is it running, and the port open?") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
