"""What an update of each method of a study costs: python -m experiments.flow_maps.cost FILE.gin, its start being there.

Time is the CPU's: of 40 updates less that of 10, by the number between. Memory is the most that torch's allocator has
given out at once from the first update on: data, reference, all networks, what optimizers keep, and what passes.
"""

import argparse
import gc
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rdm.app import config
from rdm.app.sweep import axes
from rdm.training.loop import train

FEW, MANY = 10, 40  # updates


class Cost(NamedTuple):
    """Of one update: milliseconds of the CPU, and MiB at its fullest moment."""

    milliseconds: float
    mebibytes: float


def methods(path: Path) -> dict[str, list[str]]:
    """Bindings of each method, by its name, at the last number of jumps and the first seed."""
    config.load(path)
    found = axes(config.grid())
    others = [values[-1] if axis == "jumps" else values[0] for axis, values in found.items() if axis != "method"]
    bound = {}
    for value in found["method"]:
        pairs = itertools.chain(*(each.bindings.items() for each in (value, *others)))
        bound[str(value.label)] = [f"{name} = {text}" for name, text in pairs]
    return bound


def cost(path: Path, bindings: Sequence[str]) -> Cost:
    """Of one method."""
    config.load(path, bindings)
    idle = {binding.command for binding in config.unread()}
    read = [text for text in bindings if text not in idle]
    most = _most(path, read)  # first, since what is done once in a process is none of an update's time
    few, many = (_seconds(path, read, steps) for steps in (FEW, MANY))
    return Cost(1e3 * (many - few) / (MANY - FEW), most / 2**20)


def table(found: dict[str, Cost]) -> str:
    """A row a method, with ratios to the first."""
    first = next(iter(found.values()))
    lines = ["| method | ms | ratio | MiB | ratio |", "|---" * 5 + "|"]
    for name, each in found.items():
        cells = [f"{a:.3g} | {a / b:.2f}" for a, b in zip(each, first, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _run(path: Path, bindings: Sequence[str], steps: int) -> None:
    """So many updates, and nothing besides."""
    config.load(path, bindings)
    config.aside("rdm.train.evaluation")
    given = config.plan() | {"steps": steps, "samples_every": 0, "checkpoint_every": steps, "log_every": steps}
    del given["evaluation"]
    with tempfile.TemporaryDirectory() as folder:
        train(**given, out=Path(folder))


def _seconds(path: Path, bindings: Sequence[str], steps: int) -> float:
    """Of the CPU."""
    began = time.process_time()
    _run(path, bindings, steps)
    return time.process_time() - began


def _most(path: Path, bindings: Sequence[str]) -> int:
    """Bytes that torch's allocator has given out at once, between the first update of three and the last."""
    gc.collect()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        _run(path, bindings, 3)
    events = sorted(profile.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    updates = [event.start_ns() for event in events if event.name().startswith("Optimizer.step#")]
    now = most = 0
    for event in events:
        now += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, now if updates[0] < event.start_ns() < updates[-1] else 0)
    return most


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(table({name: cost(options.study, bindings) for name, bindings in methods(options.study).items()}))
