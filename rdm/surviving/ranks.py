"""Ranks that watch each other: one that dies or hangs ends the others, with its number.

A rank that waits in a collective cannot be called back. So a thread of each rank says every half second that it lives
and how many collectives its process has begun, and reads what the others say. A rank that has stopped saying so, or
that stays behind in a collective which others have begun long ago, is named, and every process ends with status 1.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from rdm import distributed
from rdm.distributed import Board
from rdm.errors import Interrupted, first_line
from rdm.surviving import joining
from rdm.terminal import say

T = TypeVar("T")

BEAT = 0.5  # seconds between two words of a rank
SILENCE = 45.0  # seconds without a word after which a rank is lost
ALONE = 10  # so many times longer may a rank take for what it says to do alone
NOTICE = 5.0  # seconds that a process has to find itself what its board says, before it is ended
GOING_ON = "all ranks end; rdm train goes on with --resume"
HOST_LOST = f"rank 0, where the ranks meet, does not answer: it was killed or stopped; {GOING_ON}"
WRITER = "rdm checkpoint"  # name of the thread that is waited for before a process is ended


class RankLost(RuntimeError):
    """Another rank died, hangs or failed; the text has its number."""


@dataclass(frozen=True)
class Word:
    """What a rank says of itself.

    Args:
        beat: changes while the process lives.
        issued: collectives that it has begun.
        limit: seconds that others wait for it in one; None where it may take its time.
        doing: what it does alone; empty while all do the same.
        failed: why it ends; empty while it goes on.
        ended: whether it has nothing more to do with the others.
        verdict: which rank it found lost; empty while all are there.
    """

    beat: int = 0
    issued: int = 0
    limit: float | None = None
    doing: str = ""
    failed: str = ""
    ended: bool = False
    verdict: str = ""


@dataclass
class Seen:
    """What a rank last said, and when it last did so and last moved, by the clock of who reads it."""

    word: Word = field(default_factory=Word)
    spoke: float = 0.0
    moved: float = 0.0

    def read(self, word: Word, now: float) -> None:
        """Take in a word."""
        if word.beat != self.word.beat:
            self.spoke = now
        if replace(word, beat=0) != replace(self.word, beat=0):
            self.moved = now
        self.word = word


def lost(seen: list[Seen], now: float) -> str:
    """Which rank is lost, in words; empty where all live and none stays behind.

    Behind is who has begun fewer collectives than another that waits as long as it may.
    """
    for number, rank in enumerate(seen):
        silence = min(SILENCE, rank.word.limit or SILENCE)
        if not rank.word.ended and now - rank.spoke > silence:
            return f"rank {number} has not answered for {silence:.0f} s: it was killed or stopped"
    most = max(rank.word.issued for rank in seen)
    waited = min(now - rank.moved for rank in seen if rank.word.issued == most)
    for number, rank in enumerate(seen):
        if rank.word.limit is None or rank.word.ended or rank.word.issued == most:
            continue
        limit = rank.word.limit * (ALONE if rank.word.doing else 1)
        if min(now - rank.moved, waited) > limit:
            doing = f" ({rank.word.doing})" if rank.word.doing else ""
            return f"rank {number} hangs{doing}: the others have waited {limit:.0f} s for it"
    return ""


class Watch:
    """This rank's word, said and the others' read by a thread until the rank leaves."""

    def __init__(self, board: Board):
        self._board, self._lock, self._closed = board, threading.Lock(), threading.Event()
        now = time.monotonic()
        self._seen = [Seen(spoke=now, moved=now) for _ in range(distributed.world_size())]
        self._told = 0.0  # when it was first seen that another rank failed
        self._leaving = False
        self._word = Word()
        self.say()
        distributed.barrier()  # the words of all are there
        self._thread = threading.Thread(target=self._run, name="rdm watch", daemon=True)
        self._thread.start()

    def say(self, **changed: object) -> None:
        """Change this rank's word."""
        with self._lock:
            changed |= {"beat": self._word.beat + 1, "issued": distributed.issued()}
            self._word = replace(self._word, **changed)  # type: ignore[arg-type]
            self._board.post(str(distributed.rank()), json.dumps(asdict(self._word)))

    def look(self) -> list[Seen]:
        """What all ranks say now."""
        said = self._board.read([str(k) for k in range(len(self._seen))])
        now = time.monotonic()
        for seen, text in zip(self._seen, said, strict=True):
            seen.read(Word(**json.loads(text)), now)
        return self._seen

    def _run(self) -> None:
        while not self._closed.wait(BEAT):
            found = self._found()
            if found and not self._leaving:
                self._part()
                _end(found)

    def _found(self) -> str:
        """Why this process must end now; empty where it goes on."""
        try:
            self.say()
            seen = self.look()
        except RuntimeError:
            return "" if self._seen[0].word.ended else HOST_LOST
        now = time.monotonic()
        if verdict := _verdict(seen):
            return verdict
        if verdict := lost(seen, now):
            self.say(verdict=verdict)
            return f"{verdict}; {GOING_ON}"
        reason = _failed(seen)
        self._told = (self._told or now) if reason else 0.0
        return reason if reason and now - self._told > NOTICE else ""

    def _part(self) -> None:
        """Say that this rank ends; rank 0, where they meet, goes when the others have read why."""
        with suppress(RuntimeError):
            self.say(ended=True)
            if distributed.rank() == 0:
                self._until(_all_gone, NOTICE)

    def leave(self, error: BaseException | None) -> None:
        """Tell the others that this rank ends, and why; rank 0, where they meet, goes when they know.

        Raises:
            RankLost: the connection to them broke, for the reason in the text.
        """
        self._leaving, reason = True, ""
        if error is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the others when a rank dies
        try:
            if _broken(error):
                reason = self._why()
            told = error is None or reason or isinstance(error, Interrupted)
            self.say(ended=True, failed="" if told else first_line(error or RuntimeError()))
            if distributed.rank() == 0:
                self._until(_all_gone, 3 * NOTICE)
        except RuntimeError:  # the place where they meet is gone with the rank that it was on
            reason = reason or (HOST_LOST if distributed.rank() else "")
        finally:
            self._closed.set()
            self._thread.join(NOTICE)
        if reason and error is not None:
            raise RankLost(reason) from error

    def _why(self) -> str:
        """Which rank failed or died; empty where that cannot be told."""

        def reason(seen: list[Seen]) -> str | None:
            silent = [k for k, each in enumerate(seen) if _silent(each) and not each.word.ended]
            died = f"rank {silent[0]} does not answer: it was killed or stopped; {GOING_ON}" if silent else None
            return _verdict(seen) or _failed(seen) or died

        return self._until(reason, 3 * NOTICE) or ""

    def _until(self, found: Callable[[list[Seen]], T | None], seconds: float) -> T | None:
        """What is found in the words of all, looked for until it is or so long."""
        until = time.monotonic() + seconds
        while (result := found(self.look())) is None and time.monotonic() < until:
            time.sleep(BEAT / 5)
        return result


_watch: Watch | None = None  # of this process


@contextmanager
def started() -> Iterator[None]:
    """Join the ranks that torchrun announces for the length of the block, each watching the others; alone, nothing.

    Raises:
        RankLost: the connection to the others broke, with the number of the rank that failed or died.
    """
    global _watch
    with joining.started() as joined:
        if not joined:
            yield
            return
        _watch = watch = Watch(Board("watch", SILENCE))
        try:
            yield
        except BaseException as error:
            watch.leave(error)
            raise
        else:
            watch.leave(None)
        finally:
            _watch = None


@contextmanager
def expected(seconds: float) -> Iterator[None]:
    """A block in which no rank may keep the others waiting in a collective for longer."""
    with _saying(limit=seconds, otherwise={"limit": None}):
        yield


@contextmanager
def alone(doing: str) -> Iterator[None]:
    """A block of work that the other ranks wait for, which may take `ALONE` times as long as a step."""
    with _saying(doing=doing, otherwise={"doing": ""}):
        yield


@contextmanager
def _saying(*, otherwise: dict[str, object], **word: object) -> Iterator[None]:
    if _watch is None:
        yield
        return
    _watch.say(**word)
    try:
        yield
    finally:
        _watch.say(**otherwise)


def _verdict(seen: list[Seen]) -> str:
    return next((f"{each.word.verdict}; {GOING_ON}" for each in seen if each.word.verdict), "")


def _failed(seen: list[Seen]) -> str:
    return next((f"rank {k}: {each.word.failed}" for k, each in enumerate(seen) if each.word.failed), "")


def _all_gone(seen: list[Seen]) -> bool | None:
    return all(each.word.ended or _silent(each) for each in seen) or None


def _silent(seen: Seen) -> bool:
    return time.monotonic() - seen.spoke > NOTICE


def _broken(error: BaseException | None) -> bool:
    """Whether an error, or what it came in the wake of, is the connection to the others."""
    while error is not None:
        if distributed.broken(error):
            return True
        error = error.__context__
    return False


def _end(reason: str) -> None:
    """End this process, whose main thread may wait for ever; a checkpoint that is being written comes first."""
    say(f"rdm: RankLost: {reason}")
    for thread in threading.enumerate():
        if thread.name == WRITER:
            thread.join(SILENCE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
