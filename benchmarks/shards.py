"""A reference with every row kept: what making, opening and reading it takes, in time and in memory of its own.

Memory is RssAnon, which leaves the page cache out; the bar is 2 GiB for 1,280,000 rows of 768.
"""

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdm.app.judging import measure_source
from rdm.data.source import Source
from rdm.references.file import Reference
from rdm.references.shards import folder_of


@dataclass(frozen=True)
class Made(Source):
    """Rows of features by number, all different, of correlated columns; none is held."""

    n: int
    d: int
    path: Path = Path("made")
    kind = "features"

    def __post_init__(self) -> None:
        source = np.random.default_rng(0)
        mixed = source.normal(0, 1 / 8, (self.d, self.d)) + np.eye(self.d)
        tables = [(source.normal(0, 1, (k, self.d)) @ mixed).astype(np.float32) for k in (1021, 1277)]
        object.__setattr__(self, "tables", tables)

    @classmethod
    def detects(cls, path: Path) -> bool:
        """Never."""
        return False

    @property
    def members(self) -> dict[str, np.ndarray]:
        """One."""
        return {"features": np.broadcast_to(np.float32(0), (self.n, self.d))}

    def __len__(self) -> int:
        return self.n

    def name(self, i: int) -> str:
        """Its number."""
        return str(i)

    def read(self, i: int) -> np.ndarray:
        """The sum of a row of either table, which meet again after 1021 x 1277 items."""
        first, second = self.tables  # type: ignore[attr-defined]
        return first[i % 1021] + second[i % 1277]


def made(path: Path, n: int, d: int, dtype: str = "float16") -> Path:
    """A reference of made rows, all of them kept."""
    measure_source(Made(n, d), path, rows="all", rows_dtype=dtype, batch=1024, split=0.0)  # type: ignore[arg-type]
    return path


def run(*, rows: int = 50_000, d: int = 768) -> None:
    """All of it in a temporary folder, each stage in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "real.safetensors"
        print(f"\nreference of {rows:,} x {d}, every row kept in float16, {rows * d * 2 / 2**20:,.0f} MiB")
        print(f"{'':44}{'s':>9}{'own MiB':>10}")
        show("rdm reference --rows all", lambda: made(path, rows, d))
        shards = list(folder_of(path).iterdir())
        show(f"open the file and {len(shards)} shards", lambda: Reference.load(path))
        show("  and read every row, hashes checked", lambda: passes(path, 1))
        show("  and read every row twice", lambda: passes(path, 2))
        show("  and the mean and the covariance", lambda: Reference.load(path).members["features"].real().fit())
        show("  and a sample of 65,536", lambda: Reference.load(path).members["features"].real().held("it"))


def passes(path: Path, times: int) -> None:
    """Read every row in chunks; their mean is the file's."""
    real = Reference.load(path).members["features"].real()
    for _ in range(times):
        total = torch.zeros(real.dimension, dtype=torch.float64)
        for rows, _ in real.chunks():
            total += rows.sum(0, dtype=torch.float64)
    assert real.gaussian is not None and real.rows is not None
    torch.testing.assert_close(total / len(real.rows), real.gaussian.mean, rtol=1e-3, atol=1e-3)


def show(name: str, work: Callable[[], object]) -> None:
    """Print one line."""
    seconds, mebibytes = watched(work)
    print(f"{name:44}{seconds:9.2f}{mebibytes:10.0f}", flush=True)


def watched(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and peak RssAnon in MiB of a call in a forked process, above what it began with."""
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        before, most, done = anonymous(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                most[0] = max(most[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        try:
            work()
            send.send((time.perf_counter() - began, most[0] - before))
        finally:
            done.set()
            watcher.join()
            send.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    send.close()
    found = receive.recv()
    process.join()
    return found


def anonymous() -> float:
    """MiB of this process's own memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))
