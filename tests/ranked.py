"""Runs of several ranks with an accident at a step; one process imports, its forks are the ranks.

`python -m tests.ranked FOLDER PORT ACCIDENT...`, an accident being RANK:WHAT:STEP; prints a JSON list of what came of
each: status, seconds and last line of every rank.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from rdm.__main__ import main
from rdm.losses.flow_matching import FlowMatching

CONFIG = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 6
rdm.train.log_every = 1
rdm.train.checkpoint_every = 2
rdm.train.samples_every = None
rdm.train.rank_timeout = 3.0
rdm.train.optimizer = @optimizers.adamw
generators.mlp_flow.width = 8
losses.flow_matching.batch = 8
"""


def fail() -> None:
    raise RuntimeError("no memory left")


ACCIDENTS = {
    "none": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(3600),
    "fail": fail,
}


def rank(number: int, world: int, port: int, at: Path, accident: str, out: str, resume: bool) -> int:
    """One rank, in a fork; its exit status."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(at / f"{number}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    who, what, when = accident.split(":")
    as_ever = FlowMatching.backward

    def backward(self, model, step, scale):
        if (str(number), str(step)) == (who, when):
            ACCIDENTS[what]()
        return as_ever(self, model, step, scale)

    FlowMatching.backward = backward
    return main(["train", str(at / "x.gin"), "--out", str(at / out), *(["--resume"] if resume else [])])


def ranks(world: int, *rest, **options) -> list[tuple[int | None, float, str]]:
    """Status, seconds and last line of each of the ranks; what is left of them in the end is killed."""
    began, ended, at = time.monotonic(), {}, rest[1]
    started = []
    for number in range(world):
        if (child := os.fork()) == 0:
            os._exit(rank(number, world, *rest, **options))
        started.append(child)
    while len(ended) < world and time.monotonic() - began < 60:
        for number, child in enumerate(started):
            if number not in ended and (found := os.waitpid(child, os.WNOHANG))[0]:
                ended[number] = os.waitstatus_to_exitcode(found[1]), time.monotonic() - began
        if len(ended) == world - 1 and "stop" in rest[2]:
            break
        time.sleep(0.02)
    for number, child in enumerate(started):
        if number not in ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    lines = [(at / f"{k}.err").read_text().strip().splitlines() or [""] for k in range(world)]
    return [(*ended.get(k, (None, 0.0)), lines[k][-1]) for k in range(world)]


if __name__ == "__main__":
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    (folder / "x.gin").write_text(CONFIG)  # one run here imports what all of them need
    assert main(["train", str(folder / "x.gin"), "--out", str(folder / "warm"), "--bind", "rdm.train.steps = 1"]) == 0
    found = []
    for k, accident in enumerate(sys.argv[3:]):
        found.append(ranks(3, port + k, folder, accident, out=str(k), resume=False))
        if "1:kill" in accident:
            found[-1] = [*found[-1], ranks(3, port + 100 + k, folder, "0:none:0", out=str(k), resume=True)]
    print(json.dumps(found))
