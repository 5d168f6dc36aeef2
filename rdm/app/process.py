"""The process that a command runs in: its memory, signals, standard output, flags and last words."""

import argparse
import ast
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rdm.errors import LOST


def keep_freed_memory() -> None:
    """Let glibc keep the blocks that are freed for the next ones, as a long computation wants it.

    By default it returns large ones to the system, which clears them anew each time: half the time of encoding
    pictures on a CPU. Elsewhere nothing happens.
    """
    largest_trimmed, mapped_blocks = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(mapped_blocks, 0)
    mallopt(largest_trimmed, 2**31 - 1)


def cache_folder() -> Path:
    """Where encoded references are kept: RDM_CACHE, or the user's cache folder."""
    return Path(os.environ.get("RDM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rdm")


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does and SIGUSR1 ends none, where the command itself has no better answer."""

    def interrupt(number: int, frame: Any) -> None:
        LOST.append(number)  # should the exception be lost
        raise KeyboardInterrupt

    answers: dict[int, Any] = {signal.SIGTERM: interrupt, signal.SIGUSR1: signal.SIG_IGN}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody above has it ignored
        answers[signal.SIGINT] = interrupt
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        yield
    finally:
        LOST.clear()
        for number, answer in before.items():
            signal.signal(number, answer)


def of_storage(error: OSError) -> OSError:
    """What failed on disk, with what is safe and what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
        return error
    place = f" at {error.filename}" if error.filename else ""
    return OSError(
        f"{error.strerror}{place}; files written before are whole; "
        "make room or choose another place and give the same command again, rdm train with --resume"
    )


def of_packages(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """A missing package, with what brings it where only the loss was installed."""
    top = (error.name or "").partition(".")[0]
    if top not in ("gin", "PIL", "rich", "safetensors"):
        return error
    return ModuleNotFoundError(f"the command line needs {top}; pip install rdm-torch brings it", name=error.name)


def nobody_reads() -> bool:
    """Whether standard output is a closed pipe, as after `| head`; if so nothing more goes there, at exit neither."""
    try:
        print(flush=True)  # a flush alone may find nothing left to write
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def warn(message: Warning | str, category: type[Warning], *place: object, **options: object) -> None:
    """Say a warning in one line."""
    from rdm.terminal import say

    say(f"rdm: warning: {message}")


def fail(error: BaseException | str, status: int, debug: bool) -> int:
    """Say an error in one line, and what it lists below, a line each; the exit status."""
    if debug and isinstance(error, BaseException):
        raise error
    from rdm.app.explain import own_text
    from rdm.terminal import say

    kind = "" if status == 2 or isinstance(error, str) else f"{type(error).__name__}: "
    text = error if isinstance(error, str) else kind + own_text(error)
    say(f"rdm: {text}")
    for note in getattr(error, "__notes__", ()):
        say(f"  {note}")
    return status


def check(options: argparse.Namespace, function: Callable[..., Any], *names: str) -> None:
    """Check flags against the annotations of the function that takes them."""
    from rdm.numbers import check as checked
    from rdm.numbers import hints_of

    for name in names:
        checked(f"--{name.replace('_', '-')}", getattr(options, name), hints_of(function)[name])


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE or NAME.KEY=VALUE, the value a Python literal or else text."""
    from rdm.errors import InputError

    key, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise InputError(f"--set takes KEY=VALUE or NAME.KEY=VALUE; got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def form_options(command: argparse.ArgumentParser) -> None:
    """Flags for the form of items."""
    command.add_argument("--size", type=int, metavar="S", help="crop pictures to S x S, cut or pad sound to S samples")
    command.add_argument("--channels", type=int, choices=(1, 3), help="colour of all pictures (default: the first's)")


def reading_options(command: argparse.ArgumentParser) -> None:
    """Flags for how items are read."""
    command.add_argument("--seed", type=int, default=0, help="of samples, subsets and noise (0)")
    command.add_argument("--batch", type=int, default=32, metavar="N", help="items a forward pass (32)")
    command.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read items (0: none apart)"
    )
    command.add_argument("--skip-broken", action="store_true", help="leave out items that cannot be read")


def drawing_options(command: argparse.ArgumentParser, n: str) -> None:
    """Flags for what is drawn from a run, `n` items by default."""
    command.add_argument("-n", "--n", type=int, metavar="N", help=f"items to draw from a run (default: {n})")
    command.add_argument("--steps", type=int, metavar="K", help="steps of its solver (default: the run's)")
    command.add_argument(
        "--condition", metavar="A,B,C", help="classes in turn, or 'all' of them (default: drawn at random)"
    )
    command.add_argument("--average", metavar="NAME", help="weight average of a run, or 'none' (default: its first)")
    command.add_argument(
        "--trust-config", action="store_true", help="let a run's config.gin import and run code, as train does"
    )
