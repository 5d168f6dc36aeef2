"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rdm.distributed import total
from rdm.errors import LOST
from rdm.escape import printable
from rdm.terminal import say, shown

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class Reporter:
    """Says how far a run is; `say` prints a line beside the bar."""

    def __init__(self, bar: "Progress | None", total: int, done: int, *, quiet: bool = False, items: int | None = None):
        self._bar, self._total, self._quiet, self._last = bar, total, quiet, time.monotonic()
        self._began, self._before, self._items = self._last, done, items
        self._task = None if bar is None else bar.add_task("", total=total, completed=done, left="")

    def update(self, done: int, values: Mapping[str, float], *, left: float | None = None) -> None:
        """Move to `done` steps and show losses and distances; off a terminal, a line every few seconds.

        `left` are the seconds to go, where the caller knows better than the mean rate so far.
        """
        if self._bar is None and time.monotonic() - self._last <= 5 and done != self._total:
            return
        shown = {name: value for name, value in values.items() if "/" not in name or name.startswith("distance/")}
        text = "  ".join(f"{name.removeprefix('distance/')} {value:.4g}" for name, value in shown.items())
        text += self._rate(done)
        to_go = self._left(done, left)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=printable(text), left=to_go.strip())
        else:
            self._last = time.monotonic()
            self.say(f"{done}/{self._total}  {text}{to_go}".rstrip())

    def _rate(self, done: int) -> str:
        """Items a second so far, where a step has some."""
        spent = time.monotonic() - self._began
        if self._items is None or done <= self._before or spent == 0:
            return ""
        return f"  {self._items * (done - self._before) / spent:,.0f} items/s"

    def _left(self, done: int, seconds: float | None) -> str:
        """Time left, by default at the mean rate so far; nothing at either end."""
        if not self._before < done < self._total:
            return ""
        if seconds is None:
            seconds = (time.monotonic() - self._began) / (done - self._before) * (self._total - done)
        return f"  {seconds / 60:.0f} min left" if seconds >= 90 else f"  {seconds:.0f} s left"

    def say(self, line: str) -> None:
        """Print one line."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(shown(line), highlight=False)
        else:
            say(line)


@contextmanager
def progress(total: int, *, done: int = 0, quiet: bool = False, items: int | None = None) -> Iterator[Reporter]:
    """Report on `total` steps of which some are done; quiet on ranks other than the first.

    Where a step has several `items`, it says how many are done a second.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield Reporter(None, total, done, quiet=quiet, items=items)
        return
    with Progress(*_columns(), console=console) as bar:
        yield Reporter(bar, total, done, items=items)


def _columns() -> "list[ProgressColumn]":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    left = TextColumn("{task.fields[left]}")  # rich's own is by the last 30 s, in which a point of a sweep may not end
    described = TextColumn("{task.description}", markup=False)  # names of members, which may come from data
    return [MofNCompleteColumn(), BarColumn(bar_width=24), left, described]


@contextmanager
def stop_requests(*, together: bool = True) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop reads; a second one interrupts at once.

    One that was sent before and whose exception was lost, as Python loses those raised in a destructor, is one too.
    `together`: a request to any rank is one to all, which read it equally often.
    """
    requested = list(LOST)

    def ask(number: int, frame: Any) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(number)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's
        before = {}
    try:
        yield lambda: (total(len(requested)) if together else len(requested)) > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
