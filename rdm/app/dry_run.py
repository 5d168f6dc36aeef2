"""`rdm train --dry-run`: prints what a run will hold and how long it will take, without weights or data."""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rdm.app import config
from rdm.data.dataset import Data
from rdm.errors import InputError, first_line
from rdm.planning.plan import Plan, Region, planned
from rdm.planning.sizes import Sizes
from rdm.rehearsing.step import Keeps
from rdm.terminal import print_table, say

ASSUMED = 2e14  # flops a second of a device that is not here: half of what an H100 does in bfloat16
TRIAL = {"cpu": 1024, "cuda": 8192}  # side of the matrices that a device is tried with


def dry_run(path: Path, bindings: Sequence[str], *, restricted: bool) -> None:
    """Print parameters, shapes, memory by part and estimated time of what a gin file says.

    As for one rank of WORLD_SIZE, whose other ranks need not be there. Neither data sets that are not here, nor
    weights, nor the device that the file names are needed.

    Raises:
        InputError: as `rdm train`, as far as sizes show it.
    """
    config.load(path, bindings, restricted=restricted)
    outline, ranks = outlined(), _ranks()
    if outline.absent:
        say(f"the data are not here ({outline.absent}); what they hold in memory is not counted", file=sys.stdout)
    plan = outline.plan(ranks)
    _print_model(plan)
    _print_memory(plan, ranks)
    _print_time(plan, outline.arguments["steps"], outline.device)


class Outline(NamedTuple):
    """What is known of a run: arguments of `train` in sizes alone; data if they are here, else why not; its device."""

    arguments: dict[str, Any]
    sizes: Sizes
    data: Data | None
    absent: str
    device: str

    def plan(self, ranks: int) -> Plan:
        """The plan of one of so many ranks."""
        cuda = self.device.startswith("cuda")
        return planned(self.arguments, self.data, self.sizes, ranks=ranks, cuda=cuda)


def outlined() -> Outline:
    """What the configuration says, built in sizes; its data as they are, if they are; no evaluation.

    Raises:
        InputError: as `rdm.app.config.plan`.
    """
    device, data, absent = config.aside("rdm.train.device", "cpu")() or "cpu", None, ""
    try:
        torch.device(device)  # which need not be here
    except RuntimeError:
        config.check_argument("device", device)
    build = config.aside("rdm.train.data")
    config.aside("rdm.train.evaluation")
    try:
        data = build()
    except Exception as error:  # whatever an absent data set ends in
        absent = first_line(error)
    config.check_argument("data", data)
    with (sizes := Sizes())():
        return Outline(config.plan(alone=True), sizes, data, absent, str(device))


def _ranks() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"WORLD_SIZE must be the number of ranks; got {text!r}")
    return int(text)


def _print_model(plan: Plan) -> None:
    total = sum(count for *_, count in plan.parameters)
    rows = [[place, kind, f"{count:,}"] for place, kind, count in plan.parameters]
    shown = "; ".join(f"{name}, {note}" for name, note in plan.shapes)
    print_table(["part", "", "parameters"], rows, caption=f"{total:,} parameters. {shown}", right=[2], unbroken=[0, 2])


def _print_memory(plan: Plan, ranks: int) -> None:
    kept = [each for each in plan.kept if each.bytes != 0 or each.note]
    shared = _noted(kept, 2)
    rows = [
        [each.name, "not known" if each.bytes is None else _size(each.bytes), "" if each.note in shared else each.note]
        for each in kept
    ]
    fullest = plan.fullest
    passing = fullest.most - plan.gradients
    rows.append(["gradients", _size(plan.gradients), ""])
    rows.append(["activations and other passing", _size(max(0, passing)), f"at the most, in: {fullest.name}"])
    rows.append(["together", _size(plan.most), f"on each of {ranks} ranks" if ranks > 1 else ""])
    unknown = sum(each.bytes is None for each in plan.kept)
    note = "and what is not known" if unknown else "without what the allocator wastes"
    print_table(["held in memory", "", ""], rows, caption=f"{_size(plan.most)} {note}", right=[1], unbroken=[0, 1])
    _say(shared)


def _noted(given: Iterable[Keeps | Region], least: int) -> dict[str, list[str]]:
    """Notes that so many things have at least, each with their names."""
    named: dict[str, list[str]] = {}
    for each in given:
        named.setdefault(each.note, []).append(each.name)
    return {note: names for note, names in named.items() if note and len(names) >= least}


def _say(notes: Mapping[str, Sequence[str]]) -> None:
    """Say each note once, whatever the number of things."""
    for note, names in notes.items():
        start = os.path.commonprefix(names) if len(names) > 1 else ""
        say(f"{start}{', '.join(name.removeprefix(start) for name in names)}: {note}", file=sys.stdout)


def _print_time(plan: Plan, steps: int, device: str) -> None:
    rate, how = _rate(device, plan)
    rows = [
        [each.name, f"{each.times:,}", _size(each.most), f"{each.times * each.flops:.2e}", _time(each.seconds(rate))]
        for each in plan.regions
    ]
    second = plan.seconds(rate)
    caption = f"{plan.flops():.3g} flops a step; {_time(second)} a step, {_time(second * steps)} for {steps:,}, {how}"
    heads = ["part of a step", "times", "passing", "flops", "time"]
    print_table(heads, rows, caption=caption, right=[1, 2, 3, 4], unbroken=[0, 1, 2, 3, 4])
    _say(_noted(plan.regions, 1))


def _rate(device: str, plan: Plan) -> tuple[float, str]:
    """Flops a second of products of matrices there, and how that is known."""
    try:
        place = torch.device(device)
        side = TRIAL[place.type]
        matrix = torch.randn(side, side, device=place)
    except (RuntimeError, AssertionError, KeyError):
        return ASSUMED, f"if {device}, which is not here, does {ASSUMED / 1e12:.0f} Tflop/s"
    seconds = min(_timed(matrix) for _ in range(3))
    rate = 2 * side**3 / seconds
    return rate, f"at the {rate / 1e9:,.0f} Gflop/s that {device} does in float32{_elsewhere(device, plan)}"


def _elsewhere(device: str, plan: Plan) -> str:
    """What a step takes on an accelerator, where the file names none."""
    second = _time(plan.seconds(ASSUMED))
    return (
        f"; {second} a step where a device does {ASSUMED / 1e12:.0f} Tflop/s (rdm.train.device)"
        if device == "cpu"
        else ""
    )


def _timed(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    float((matrix @ matrix)[0, 0])  # waits for it
    return time.perf_counter() - began


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= 2 * size or unit == "ms":
            return f"{seconds / size:.3g} {unit}"
    return ""
