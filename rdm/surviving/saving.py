"""Checkpoints written while training goes on: by a thread, from a copy on the host, one at a time."""

import errno
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rdm.distributed import rank, together, total, words, world_size
from rdm.errors import CorruptFileError
from rdm.files.checkpoint import Snapshot, complete_checkpoints, row_of, snapshot, write_checkpoint
from rdm.files.parts import Shared
from rdm.files.store import remove_folder
from rdm.surviving.keeping import Keeping
from rdm.surviving.ranks import WRITER, alone
from rdm.terminal import say
from rdm.timing.regions import region

TRIES = 3  # checkpoints in a row that find the disk full before the run ends
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


class Saver:
    """Writes a run's checkpoints on rank 0, keeps those that stay, and says what could not be written.

    A disk that is full does not end the run at once: the next checkpoint is tried, `TRIES` in a row, and what was
    written before stays. Any other error is raised by the next call.

    Args:
        folder: of the checkpoints.
        keeping: which stay.
        start: step that the run goes on from; checkpoints beyond it are damaged, and left alone.
        shown: says a line.
    """

    def __init__(
        self,
        folder: Path,
        keeping: Keeping,
        start: int = 0,
        shown: Callable[[str], object] = say,
    ):
        self._folder, self._keeping, self.shown = folder, keeping, shown
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failed = 0  # in a row
        paths = complete_checkpoints(folder) if rank() == 0 else []
        self._rows = {int(path.name): _row(path) for path in paths if int(path.name) <= start}

    @region("checkpoints")
    def save(
        self, step: int, state: dict[str, Any], row: Mapping[str, float], after: Callable[[], object] = lambda: None
    ) -> Path:
        """Copy a state to the host and write it beside what follows; the one before is waited for.

        Args:
            step: its number.
            state: a tree of tensors and plain values, which may change afterwards.
            row: what is logged at this step, by which it is kept.
            after: comes before it, and nothing is written if this fails: writes out the log.

        Raises:
            OSError: the disk was full `TRIES` times in a row.
            Exception: whatever else the one before failed with.
        """
        with together():
            self._collect(last=False)
        first = rank() == 0
        with alone("copying its state"):
            held, row = snapshot(state, parts_only=not first), dict(row)
        shared = Shared(rank(), world_size(), words(uuid.uuid4().hex)[0]) if held.parts else None
        ready = not first or self._went_well(step, after)
        if shared is not None:
            ready = total(not ready) == 0
        if ready and (first or shared is not None):
            work = partial(self._went_well, step, lambda: self._write(step, held, row, shared))
            self._thread = threading.Thread(target=work, name=WRITER)
            self._thread.start()
            if first and (missing := self._keeping.unmeasured(row)):
                self.shown(f"step {step} logged no {missing[0]!r}, by which the best checkpoint would be told")
        return self._folder / f"{step:08d}"

    def finish(self) -> None:
        """Wait for the last checkpoint, on all ranks.

        Raises:
            OSError: it could not be written; another kind of error on the ranks that wait.
        """
        with together():
            self._collect(last=True)

    def last(self) -> Path | None:
        """The newest complete checkpoint, after what is being written."""
        self._join()
        return next(iter(reversed(complete_checkpoints(self._folder))), None)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the last one; its error does not hide another."""
        self._join() if kind is not None else self.finish()

    def _join(self) -> None:
        if self._thread is not None:
            with alone("writing a checkpoint"):
                self._thread.join()
            self._thread = None

    def _collect(self, *, last: bool) -> None:
        self._join()
        if (error := self._error) is not None:
            if last or self._failed >= TRIES or not is_full(error):
                raise error
            self._error = None

    def _write(self, step: int, held: Snapshot, row: Mapping[str, float], shared: Shared | None) -> None:
        """In the thread."""
        write_checkpoint(self._folder, step, held, row, shared)
        self._failed = 0
        if rank() > 0:
            return
        self._rows[step] = row
        stay = self._keeping.kept(self._rows.values())
        for old in self._rows.keys() - stay:
            del self._rows[old]
            remove_folder(self._folder / f"{old:08d}")

    def _went_well(self, step: int, act: Callable[[], object]) -> bool:
        """Whether a part of a checkpoint was written; if not the reason is said and kept."""
        try:
            act()
        except Exception as error:
            self._error, self._failed = error, self._failed + 1
            kept = complete_checkpoints(self._folder)
            good = f"the last good one is {kept[-1]}" if kept else "there is none before it"
            self.shown(f"checkpoint of step {step} could not be written: {reason(error)}; {good}")
        return self._error is None


def is_full(error: BaseException) -> bool:
    """Whether there was no room to write: a full disk, a quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in FULL


def reason(error: BaseException) -> str:
    """What the system says, without the place."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def spared(what: str, shown: Callable[[str], object]) -> Iterator[None]:
    """A block that writes what a run can be without: a full disk is said, and the run goes on."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        shown(f"{what} could not be written: {reason(error)}")


def _row(path: Path) -> Mapping[str, float]:
    try:
        return {**row_of(path), "step": int(path.name)}
    except CorruptFileError:
        return {"step": int(path.name)}
