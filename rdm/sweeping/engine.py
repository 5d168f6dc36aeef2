"""What an engine of sweeps is given, and what it answers.

An engine runs `rdm train` of one point after the other, wherever it does, and leaves what that writes in the point's
folder. Which points there are, which are finished and what failed is none of its business.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

OUTPUT = "output.txt"  # of a point's process, in its folder


class Job(NamedTuple):
    """A point to train."""

    name: str  # in words
    folder: Path
    file: Path  # its configuration
    text: str  # that file's, with what it includes
    options: tuple[str, ...]  # what `rdm train` is given beside file and folder


@runtime_checkable
class Running(Protocol):
    """A point that is being trained; a `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Exit status of its `rdm train`, negative for a signal; None while it goes on."""
        ...

    def wait(self) -> int:
        """As `poll`, once it has ended."""
        ...

    def terminate(self) -> None:
        """Ask it to save and end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Where points are trained."""

    @property
    def workers(self) -> int:
        """How many it trains at a time, as things are now."""
        ...

    def room(self) -> bool:
        """Whether another point may be started."""
        ...

    def start(self, job: Job, held: int, say: Callable[[str], None]) -> Running:
        """Begin a point, or go on with it.

        `held` is a descriptor that holds the lock of its folder: it is the engine's from here on, which keeps it open
        until the point has ended. `say` prints a line.
        """
        ...

    def close(self) -> None:
        """No point will be started any more."""
        ...
