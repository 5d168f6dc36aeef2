"""Learning-rate schedules: factors of the base rate as functions of the share of training done."""

import math
from collections.abc import Callable

from rdm.numbers import Fraction, Share, validated

Schedule = Callable[[float], float]


@validated
def constant(warmup: Share = 0.0) -> Schedule:
    """1 after a linear rise over the first `warmup` share of the steps."""
    return lambda done: _rise(done, warmup)


@validated
def cosine(warmup: Share = 0.0, floor: Fraction = 0.0) -> Schedule:
    """Half a cosine from 1 to `floor` after a linear rise (Loshchilov and Hutter 2017, without restarts)."""

    def factor(done: float) -> float:
        progress = max(done - warmup, 0.0) / (1 - warmup)
        return _rise(done, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


def _rise(done: float, warmup: float) -> float:
    return min(1.0, done / warmup) if warmup > 0 else 1.0
