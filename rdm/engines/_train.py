"""`rdm train` in a process of its own: on this machine, or as what a task does on another one.

Only the standard library is imported, so that a worker of a cluster that has nothing to do but to wait stays small.
"""

import ctypes
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

OUTPUT, RESULT, LOCK = "output.txt", "result.json", "lock"  # of a point's folder, which the sweep or the run write
WANTED = 1000  # no exit status: this machine lacks the point's folder, which holds work
PATIENCE = 60.0  # seconds that a process which was told to end may take


def begun(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *held: int,
    cwd: Path | None = None,
    bound: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `rdm train WORDS`, which says into the folder's output.txt; `bound` to end when this process does.

    It is the same program as this one: what this process imports, from where it does, and nothing from the working
    folder.
    """
    search = os.pathsep.join(place or os.getcwd() for place in sys.path)
    with (folder / OUTPUT).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "rdm", "train", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "PYTHONPATH": search},
            cwd=cwd,
            pass_fds=held,
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
            preexec_fn=_end_with_parent(ctypes.CDLL(None)) if bound else None,
        )


def _end_with_parent(system: ctypes.CDLL) -> Callable[[], None]:
    return lambda: system.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG: it saves and ends, as on any SIGTERM


def trained(
    name: str, text: str, options: Sequence[str], folder: str, token: str, place: str, sent: bytes | None
) -> tuple[int, bytes | None]:
    """What a task does: train a point in its folder, or else in one of its own whose content is given back.

    The folder is the sweep's, seen from here, if its lock holds the token; then nothing is given back.

    Args:
        name: of the configuration's file.
        text: of it, with what it includes.
        options: of `rdm train`.
        folder: the point's, where the sweep runs.
        token: what the sweep wrote into the folder's lock.
        place: the sweep's working folder, which is this one's too if it is here.
        sent: what the point's folder holds where the sweep runs; None for something that was not sent.
    """
    with tempfile.TemporaryDirectory(prefix="rdm-point-") as own:
        config = Path(own, name)
        config.write_text(text, encoding="utf-8")
        shared = _said(Path(folder, LOCK)) == token
        out = Path(folder) if shared else Path(own, "point")
        if not shared:
            if sent is None:
                return WANTED, None
            out.mkdir()
            unpack(sent, out)
        cwd = Path(place) if Path(place).is_dir() else Path(own)
        status = _ended([str(config), "--out", str(out), *options], out, cwd)
        return status, None if shared else packed(out)


def _said(lock: Path) -> str:
    try:
        return lock.read_text()
    except (OSError, ValueError):
        return ""


def _ended(words: Sequence[str], out: Path, cwd: Path) -> int:
    """Train to the end; an interruption, which is how a task is cancelled, is handed on as SIGTERM."""
    _wait_for_the_one_before(out)
    process = begun(words, out, {}, cwd=cwd, bound=True)
    while True:
        try:
            while process.poll() is None:
                time.sleep(0.1)
            return process.returncode
        except KeyboardInterrupt:
            process.terminate()


def _wait_for_the_one_before(out: Path) -> None:
    """Let a process end whose own worker was lost; should it go on, `rdm train` says so."""
    deadline = time.monotonic() + PATIENCE
    with (out / ".lock").open("a") as lock:
        while time.monotonic() < deadline:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)


def packed(folder: Path) -> bytes:
    """A folder's files as an archive, but for locks and what is half written."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and name != Path(LOCK) and not any(part.startswith(".") for part in name.parts):
                archive.add(path, str(name))
    return data.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Put an archive's files in place of a folder's, the result last: what has one is whole."""
    fetched = Path(tempfile.mkdtemp(prefix=".fetched.", dir=folder))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(fetched, filter="data")
    for path in sorted(fetched.iterdir(), key=lambda path: path.name == RESULT):
        there = folder / path.name
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)
    fetched.rmdir()
