"""Classes as whole numbers of 64 bits, whatever form they were written in."""

import numpy as np

from rdm.api import InputError

LARGEST = 2**63 - 1


def whole(value: object, who: str) -> int:
    """A class, or another number of a file, that came as JSON or text.

    Raises:
        InputError: it is no whole number of 64 bits.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value == value and abs(value) <= LARGEST and value == int(value):
            return int(value)
    shown = repr(value)
    raise InputError(f"{who}: expected a whole number of 64 bits; got {shown[:40]}{'...' * (len(shown) > 40)}")


def classes(labels: np.ndarray, n: int, who: str) -> np.ndarray:
    """Classes of n items from an array, int64.

    Raises:
        InputError: not one an item, or no whole numbers of 64 bits.
    """
    if labels.shape not in ((n,), (n, 1)):
        raise InputError(f"{who}: expected {n} labels, one an item; got shape {labels.shape}")
    labels = labels.reshape(n)
    if labels.dtype.kind not in "iubf":
        raise InputError(f"{who}: labels must be whole numbers; got {labels.dtype}")
    if labels.dtype.kind == "f":
        fits = np.isfinite(labels) & (np.abs(labels) < 2.0**63) & (np.trunc(labels) == labels)
    else:
        fits = labels <= LARGEST
    if not fits.all():
        i = int(np.flatnonzero(~fits)[0])
        raise InputError(f"{who}: label {i} is no whole number of 64 bits; got {labels[i]}")
    return labels.astype(np.int64)


def labelled(labels: np.ndarray | None, i: int) -> int:
    """The i-th label, or -1."""
    return -1 if labels is None else int(labels[i])
