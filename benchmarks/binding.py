"""Binding to a reference of any size: rows in float16 on the disk, memory beside the page cache, and a second start."""

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import rdm
from rdm.matching.real import Real, Rows
from rdm.references.targets import bound

OBJECTIVES = ("frechet", "mmd_rff", "mmd_nystrom", "sliced_wasserstein", "energy")


class OnDisk(Rows):
    """Made rows in one file, mapped."""

    identity = "made"  # the folder of targets is the benchmark's own

    def __init__(self, path: Path, count: int, d: int):
        self.mapped = torch.from_file(str(path), shared=False, size=count * d, dtype=torch.float16).view(count, d)

    def __len__(self) -> int:
        return len(self.mapped)

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.mapped.shape[1]

    def take(self, numbers: Tensor) -> Tensor:
        """Rows by number."""
        return self.mapped[numbers]

    def span(self, start: int, stop: int) -> Tensor:
        """Rows start to stop."""
        return self.mapped[start:stop]


def made(path: Path, count: int, d: int) -> OnDisk:
    """Rows of a power-law spectrum, correlated, off centre."""
    g = torch.Generator().manual_seed(0)
    scales, turn = torch.arange(1, d + 1) ** -0.5, torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    with open(path, "wb") as file:
        for start in range(0, count, 16_384):
            rows = torch.randn(min(16_384, count - start), d, generator=g) * scales @ turn + 0.3
            file.write(rows.half().numpy().tobytes())
    return OnDisk(path, count, d)


@contextlib.contextmanager
def anonymous(peak: list[float]) -> Iterator[None]:
    """MiB of memory that no file backs, at its highest."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def run(count: int = 50_000, d: int = 768, names: tuple[str, ...] = OBJECTIVES) -> None:
    """Seconds of the processor and of the clock, and MiB of RssAnon, at the first start and at the second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        real = Real(made(path / "rows", count, d))
        print(f"\nreference of {count} x {d} in float16 on the disk ({count * d * 2 / 2**20:.0f} MiB)")
        print(f"{'':24}{'bind cpu s':>11}{'wall s':>9}{'RssAnon MiB':>13}{'again s':>9}")
        for name in names:
            objective, peak, times = rdm.objective(name), [0.0], []
            with anonymous(peak):
                for _ in range(2):
                    clock, cpu = time.perf_counter(), time.process_time()
                    bound(objective, Real(real.rows), path / "targets")
                    times.append((time.process_time() - cpu, time.perf_counter() - clock))
            print(f"{name:24}{times[0][0]:11.1f}{times[0][1]:9.1f}{peak[0]:13.0f}{times[1][1]:9.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--only", nargs="*", default=OBJECTIVES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.rows, options.dimension, tuple(options.only))
