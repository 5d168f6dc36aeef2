"""What a run is asked by signals: to stop (Ctrl-C, SIGTERM) and to save now and go on (SIGUSR1)."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from rdm.distributed import active, summed
from rdm.progress import stop_requests


class Asked(NamedTuple):
    """What any rank was asked, equal on all."""

    stop: bool
    save: bool


@contextmanager
def requests() -> Iterator[Callable[[], Asked]]:
    """Turn signals into requests that every rank reads, equally often; one that was read is not told again."""
    saves: list[int] = []
    try:
        before = signal.signal(signal.SIGUSR1, lambda number, frame: saves.append(number))
    except ValueError:  # not the main thread: signals are the caller's
        before = None

    with stop_requests(together=False) as stopping:

        def read() -> Asked:
            new = len(saves)
            del saves[:new]
            mine = [int(stopping()), new]
            stop, save = summed(torch.tensor(mine)).tolist() if active() else mine
            return Asked(stop > 0, save > 0)

        try:
            yield read
        finally:
            if before is not None:
                signal.signal(signal.SIGUSR1, before)
