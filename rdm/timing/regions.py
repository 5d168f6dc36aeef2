"""Where the time of a run goes: named regions of the code, timed while a profile is being taken and free otherwise.

A region's time is its own, without that of regions inside it, so that all of them add up. On a GPU the time is that of
the device's stream, by events.

What a step is there for are the regions of `WORK`: generator and encoders, forward and backward; the statistics of
features; and the distances of summaries with their gradients. All the rest is what a step costs besides: the update of
the weights and its averages, clipping, memories, checks, what is drawn, and whatever Python does between.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any

import torch

OTHER = "everything else"
WORK = "generator", "encoder", "statistics", "distances"  # with which the names of regions begin
PENDING = 4096  # events that are not read yet


class Profile:
    """Seconds by region, from the first step on, which begins where the region `OTHER` is entered.

    What comes after the last region is not counted. Not timed are other threads than the one that made it.
    """

    def __init__(self, *, cuda: bool = False):
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._cuda, self._thread = cuda, threading.get_ident()
        self._stack: list[str] = []
        self._marks: list[tuple[str, Any]] = []  # what is run from each mark on

    @property
    def steps(self) -> int:
        """How many steps began."""
        return self.calls[OTHER]

    @property
    def outside(self) -> float:
        """The share that is in none of the regions of `WORK`."""
        spent = sum(spent for name, spent in self.seconds.items() if not name.startswith(WORK))
        return spent / sum(self.seconds.values())

    def rows(self) -> list[list[str]]:
        """Regions, the longest first: name, times a step, milliseconds a step, share."""
        total = sum(self.seconds.values())
        return [
            [name, f"{self.calls[name] / self.steps:.3g}", f"{1000 * spent / self.steps:.3g}", f"{spent / total:.1%}"]
            for name, spent in self.seconds.most_common()
        ]

    def record(self) -> dict[str, Any]:
        """Steps, and seconds and calls by region."""
        regions = {name: {"seconds": spent, "calls": self.calls[name]} for name, spent in self.seconds.most_common()}
        return {"steps": self.steps, "regions": regions}

    def enter(self, name: str) -> None:
        """From here on time is the region's."""
        if threading.get_ident() != self._thread or not (name == OTHER or self.steps):
            return
        self._stack.append(name)
        self.calls[name] += 1
        self._mark(name)

    def leave(self) -> None:
        """From here on time is that of the region around."""
        if threading.get_ident() != self._thread or not self._stack:
            return
        self._stack.pop()
        self._mark(self._stack[-1] if self._stack else OTHER)

    def read(self) -> None:
        """Add up what was marked."""
        if self._cuda and self._marks:
            torch.cuda.synchronize()
        for (name, start), (_, stop) in zip(self._marks, self._marks[1:], strict=False):
            self.seconds[name] += start.elapsed_time(stop) / 1000 if self._cuda else stop - start
        self._marks = self._marks[-1:]

    def _mark(self, name: str) -> None:
        if self._cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((name, now))
        if len(self._marks) > PENDING:
            self.read()


_taken: Profile | None = None


@contextmanager
def profiled(profile: Profile | None) -> Iterator[None]:
    """A block whose regions are timed; as it is, for None."""
    global _taken
    before, _taken = _taken, profile
    try:
        yield
    finally:
        _taken = before
        if profile is not None:
            profile.read()


class region(ContextDecorator):  # noqa: N801  (used as a function)
    """A block, or a function, that is a region of a profile."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        if _taken is not None:
            _taken.enter(self.name)

    def __exit__(self, *raised: object) -> None:
        if _taken is not None:
            _taken.leave()
