"""A short run, killed at random moments and resumed until it is done, again and again.

`python -m tests.killed FOLDER KILLS RANKS SEED`: one process imports, its forks train. Among the kills, some runs get
SIGTERM or SIGUSR1, find no room on the disk for a while, or have the end of their newest checkpoint cut off. Every end
must be that of the run that nothing happened to, bit for bit. Prints a JSON object of how often what happened.
"""

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from rdm.files.checkpoint import complete_checkpoints, read_checkpoint
from rdm.randomness import seeded
from rdm.surviving.ranks import started
from rdm.training.loop import train
from tests.test_train import arguments, leaves, untimed

STEPS = 12
FULL = 20_000  # bytes of the largest file on a full disk: the log and pictures fit, a checkpoint does not


def changes(ranks: int) -> dict:
    """What is changed of the run of `tests.test_train`; several ranks share out the model."""
    return {"steps": STEPS, "samples_every": None, "keep": 3, "shard": ranks > 1}


def trains(out: Path, number: int, ranks: int, port: int, full: tuple[float, float]) -> int:
    """One rank, in a fork; its exit status."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(out.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    warnings.simplefilter("ignore")
    if full[1]:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        limits = itertools.chain([(FULL, unlimited[1])], itertools.repeat(unlimited))
        signal.signal(signal.SIGALRM, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, next(limits)))
        signal.setitimer(signal.ITIMER_REAL, *full)
    try:
        with started(), seeded(0):
            train(**arguments("queue", out, **changes(ranks)), resume=out.exists())
    except (Exception, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def begin(out: Path, ranks: int, full: tuple[float, float] = (0, 0)) -> list[int]:
    """Start all ranks of a run; their processes."""
    port, children = 20_000 + random.SystemRandom().randrange(20_000), []
    for number in range(ranks):
        if (child := os.fork()) == 0:
            os._exit(trains(out, number, ranks, port, full))
        children.append(child)
    return children


def end(children: list[int]) -> list[int]:
    """Wait for them; their statuses."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def send(children: list[int], number: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def same(a: Path, b: Path) -> bool:
    """Every tensor of the last state, and every row of the log but the time."""
    ends = [read_checkpoint(complete_checkpoints(out / "checkpoints")[-1]) for out in (a, b)]
    states = zip(leaves(ends[0][1]), leaves(ends[1][1]), strict=True)
    return (
        ends[0][0] == ends[1][0] == STEPS == len(untimed(a))
        and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in states)
        and untimed(a) == untimed(b)
    )


def reached(out: Path, children: list[int]) -> None:
    """Wait until a run that was started writes its log, or has ended."""
    log, since = out / "log.jsonl", time.time_ns()
    while not (log.exists() and log.stat().st_mtime_ns > since):
        if os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)


def cut(out: Path) -> bool:
    """Cut off the end of the newest checkpoint, if there is one to go back to."""
    *before, newest = complete_checkpoints(out / "checkpoints") or [None]
    if before:
        file = newest / "state.safetensors"
        os.truncate(file, file.stat().st_size // 2)
    return bool(before)


def killed(folder: Path, kills: int, ranks: int, seed: int) -> dict[str, int]:
    """How often what happened."""
    whole, draw, found, run = folder / "whole", random.Random(seed), Counter[str](), 0
    with seeded(0):  # imports what all of them need
        train(**arguments("queue", folder / "warm", **changes(1)))
    end(begin(whole, ranks))
    children = begin(folder / "timed", ranks)
    reached(folder / "timed", children)
    began = time.monotonic()
    end(children)
    length = time.monotonic() - began
    while found["kills"] < kills:
        out, run, done, tries = folder / str(run), run + 1, False, 0
        while not done:
            tries += 1
            assert tries < 100, (folder / "said").read_text()[-2000:]
            full = (draw.uniform(0, length), draw.uniform(0, length / 4)) if draw.random() < 0.15 else (0, 0)
            children = begin(out, ranks, full)
            if draw.random() < 0.8:  # else it is killed while it starts
                reached(out, children)
            time.sleep(draw.uniform(0, length))
            accident = draw.choices(["kill", "term", "usr1 and kill"], [7, 1, 2])[0]
            if accident.startswith("usr1"):
                send(children, signal.SIGUSR1)
                time.sleep(draw.uniform(0, length / 8))
            send(children, signal.SIGTERM if accident == "term" else signal.SIGKILL)
            statuses = end(children)
            done = statuses == [0] * ranks
            found.update({"full disks": full[1] > 0, "terms": accident == "term" and not done})
            if accident != "term":
                found.update({"kills": not done, "usr1": accident.startswith("usr1") and not done})
                found["kills in a save"] += bool(list(out.glob("checkpoints/.0*")))
                for left in out.glob("checkpoints/.0*"):
                    shutil.rmtree(left)
            if not done and draw.random() < 0.1:
                found["cuts"] += cut(out)
        found["runs"] += 1
        found["other ends"] += not same(whole, out)
        shutil.rmtree(out)
    return dict(found)


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    print(json.dumps(killed(Path(place), *map(int, numbers))))
