"""Numbers that come from a device: read together, once a step, so that the CPU does not wait for it again and again.

A branch on what lies on a device stops the CPU until all that was asked of the device is done. Within `postponed`, a
branch takes the side that is expected (`usual`), a number is handed on later (`later`), and the block's end reads
everything in one piece. Where something was not as expected, or failed, the block is undone and run again with every
number read where it is needed: so results are the same, and an error has the words that it would have had. The next
block expects what was found.

A step of training is such a block, and so is a call of `rdm.Loss`, `rdm.Population.loss` or `.backward` outside of one.
On the CPU, and outside of a block, numbers are read at once.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Put = Callable[[float], object]
Place = tuple[CodeType, int]


class Unusual(Exception):
    """A postponed branch should have taken its other side."""


class _Block:
    """What is asked for until its end."""

    def __init__(self, *, learns: bool = False) -> None:
        self.learns = learns  # its branches are read at once, and expected the next time
        self.places: Counter[Place] = Counter()
        self.flags: list[Tensor] = []
        self.numbers: list[tuple[Tensor, Put]] = []
        self.undo: list[Callable[[], object]] = []

    def read(self) -> None:
        """The one read.

        Raises:
            Unusual: a flag is not as it was taken to be.
        """
        asked = [*self.flags, *(number for number, _ in self.numbers)]
        found = torch.stack([each.double() for each in asked]).tolist() if asked else []
        if not all(found[: len(self.flags)]):
            raise Unusual
        for (_, put), value in zip(self.numbers, found[len(self.flags) :], strict=True):
            put(value)


_block: _Block | None = None  # of all threads: a device's backward pass runs in one of its own
_found = dict[tuple[Place, int], bool]()  # which side a branch took, by its place and how often a block came there


def postponed(run: Callable[[], T], device: torch.device, *, on: bool = True) -> tuple[T, bool]:
    """run(), whose numbers on the device are read once at its end; and whether that went well, without a second run."""
    global _block
    if not on or device.type == "cpu" or _block is not None:
        return run(), True
    _block = block = _Block()
    try:
        found = run()
        block.read()
        return found, True
    except Exception:
        for each in reversed(block.undo):
            each()
    finally:
        _block = None
    _block = _Block(learns=True)
    try:
        return run(), False
    finally:
        _block = None


def usual(flag: Tensor, expected: bool = True) -> bool:
    """bool(flag); in a block that postpones it, what was found here the last time or else is expected of it."""
    if flag.device.type == "cpu" or (block := _block) is None:
        return bool(flag)
    frame = sys._getframe(1)
    place = frame.f_code, frame.f_lineno
    block.places[place] += 1
    branch = place, block.places[place]
    if block.learns:
        _found[branch] = bool(flag)
        return _found[branch]
    expected = _found.get(branch, expected)
    block.flags.append(flag.detach() if expected else ~flag.detach())
    return expected


def later(number: Tensor | float, put: Put) -> None:
    """put(float(number)), at once or at the end of a block that postpones it."""
    if (block := _block) is None or block.learns or not isinstance(number, Tensor) or number.device.type == "cpu":
        put(float(number))
    else:
        block.numbers.append((number.detach(), put))


def numbers(names: Sequence[str], given: Tensor | Sequence[Tensor | float]) -> dict[str, Any]:
    """Numbers by name; in a block that postpones them, the tensors that hold them."""
    if pending():
        return dict(zip(names, given, strict=True))
    every = given.tolist() if isinstance(given, Tensor) else map(float, given)
    return dict(zip(names, every, strict=True))


def read(given: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Numbers by name, which in a block that postpones them are there at its end."""
    found = dict.fromkeys(given, math.nan)
    for name, number in given.items():
        later(number, partial(found.__setitem__, name))
    return found


def pending() -> bool:
    """Whether this is within a block that postpones."""
    return _block is not None and not _block.learns


def at_once(tensor: Tensor) -> bool:
    """Whether numbers of this tensor are read where they are needed: on the CPU, and outside of a block."""
    return tensor.device.type == "cpu" or not pending()


def undone_by(undo: Callable[[], object]) -> None:
    """What takes back a change, if a block that postpones its numbers is run again."""
    if _block is not None and not _block.learns:
        _block.undo.append(undo)
