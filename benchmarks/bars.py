"""Bars: what a benchmark must reach, and the file that says which are."""

import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

FILE = Path(__file__).with_name("bars.json")


class Bar(NamedTuple):
    """A figure, and what it must at least or at most be."""

    name: str
    got: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is reached."""
        return (self.least is None or self.got >= self.least) and (self.most is None or self.got <= self.most)

    def __str__(self) -> str:
        wanted = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"{'holds' if self.holds else 'FAILS':7}{self.name:64}{self.got:10.3g}{wanted:>10}"


def show(bars: Iterable[Bar]) -> None:
    """Print bars, and write them to the file beside those of other benchmarks."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    print()
    for bar in bars:
        print(bar, flush=True)
        wanted = {key: value for key, value in (("least", bar.least), ("most", bar.most)) if value is not None}
        on = f"{platform.machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}"
        known[bar.name] = {"got": float(f"{bar.got:.3g}"), **wanted, "holds": bar.holds, "on": on}
    FILE.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
