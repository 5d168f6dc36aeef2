"""Measuring: interleaved times in one process, peak memory in a fresh one for each candidate."""

import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

Candidate = Callable[[], tuple[Tensor, Tensor]]  # value and gradient


class Row(NamedTuple):
    """One candidate's figures."""

    name: str
    milliseconds: float
    ratio: float  # to the first candidate
    value_error: float  # relative, against float64
    gradient_error: float
    peak: float  # MiB above the level before the call


def interleaved(
    candidates: Mapping[str, Candidate], exact: tuple[Tensor, Tensor], *, repeats: int, device: str
) -> list[Row]:
    """Median time of each candidate over interleaved repeats, and its error and peak memory."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    results = {name: run() for name, run in candidates.items()}  # also warms up
    for _ in range(repeats):
        for name, run in candidates.items():
            times[name].append(milliseconds(run, device))
    first = median(next(iter(times.values())))
    rows = []
    for name, (value, gradient) in results.items():
        pairs = zip((value, gradient), exact, strict=True)
        errors = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]
        spent = median(times[name])
        rows.append(Row(name, spent, spent / first, *errors, peak(candidates[name], device)))
    return rows


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Process time of one call on the CPU; wall time to the end of its kernels on an accelerator."""
    if device == "cpu":
        began = time.process_time()
        run()
        return 1e3 * (time.process_time() - began)
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def peak(run: Callable[[], object], device: str) -> float:
    """MiB by which a call raises the high-water mark: resident memory in a forked child, or the accelerator's."""
    return stages([run], device)[0][1]


def stages(runs: Sequence[Callable[[], object]], device: str) -> list[tuple[float, float]]:
    """Milliseconds and peak MiB of calls that build on each other, in one forked child or on the accelerator."""
    if device != "cpu":
        return [_stage(run, device) for run in runs]
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        send.send([_stage(run, device) for run in runs])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    found = receive.recv()
    process.join()
    return found


def _stage(run: Callable[[], object], device: str) -> tuple[float, float]:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        spent = milliseconds(run, device)
        return spent, (torch.cuda.max_memory_allocated() - before) / 2**20
    _reset_high_water()
    before = _high_water()
    spent = milliseconds(run, device)
    return spent, _high_water() - before


def _reset_high_water() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier and not yet given back would hide what a call takes
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _high_water() -> float:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(title: str, rows: list[Row]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"{'':34}{'ms':>9}{'ratio':>8}{'value err':>11}{'grad err':>10}{'peak MiB':>10}")
    for row in rows:
        floor = row.name.startswith("(")  # part of the work, with no value of its own
        errors = f"{'-':>11}{'-':>10}" if floor else f"{row.value_error:11.1e}{row.gradient_error:10.1e}"
        print(f"{row.name:34}{row.milliseconds:9.1f}{row.ratio:8.2f}{errors}{row.peak:10.0f}")
