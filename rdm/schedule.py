"""Learning-rate schedules: factors of the base rate as functions of the share of training done."""

import math
from collections.abc import Callable

from rdm.errors import InputError

Schedule = Callable[[float], float]


def constant(warmup: float = 0.0) -> Schedule:
    """1 after a linear rise over the first `warmup` share of the steps."""
    _check_share(warmup)
    return lambda done: _rise(done, warmup)


def cosine(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `floor` after a linear rise (Loshchilov and Hutter 2017, without restarts)."""
    _check_share(warmup)

    def factor(done: float) -> float:
        progress = max(done - warmup, 0.0) / (1 - warmup)
        return _rise(done, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


def _rise(done: float, warmup: float) -> float:
    return min(1.0, done / warmup) if warmup > 0 else 1.0


def _check_share(warmup: float) -> None:
    if not 0 <= warmup < 1:
        raise InputError(f"warmup is a share of the steps, 0 <= warmup < 1; got {warmup}")
