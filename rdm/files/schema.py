"""What a file must hold: every tensor and value of it described, and checked before any is used.

A hash says that a file is as it was written; a description says that what was written makes sense. A description is a
`Check`, made of the functions below: `record({"mean": tensor("float64", "d"), "n": number(int, low=2)})`. A letter in
a shape stands for one size throughout a file. Floating-point tensors must be finite.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from rdm.errors import CorruptFileError

Sizes = dict[str, int]
Check = Callable[[Any, str, Sizes], None]  # (value, its name in errors, sizes bound so far): refuses or returns
Law = Callable[[Tensor], str]  # what is wrong with a tensor of right type and shape, or ""
WHOLE = 2**53  # whole numbers that JSON's readers agree on


def expect(value: Any, check: Check, file: object, remedy: str = "make it again", **sizes: int) -> None:
    """Refuse what does not fit the description, in one line that names the file, the entry and the remedy.

    Raises:
        CorruptFileError: expected, received, remedy.
    """
    try:
        check(value, "", dict(sizes))
    except _Fault as fault:
        raise CorruptFileError(f"{file}: {fault}; it is damaged or forged: {remedy}") from None
    except RecursionError:
        raise CorruptFileError(f"{file}: nested too deeply; it is damaged or forged: {remedy}") from None


class _Fault(Exception):
    """One entry does not fit."""


def _refuse(where: str, wanted: str, got: Any) -> NoReturn:
    raise _Fault(f"{where or 'its content'} must be {wanted}; got {_shown(got)}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_name(value.dtype)} {tuple(value.shape)}"
    return " ".join(reprlib.repr(value).split())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor(
    dtypes: str, shape: str, *, low: float | None = None, high: float | None = None, law: Law | None = None
) -> Check:
    """A tensor of one of some dtypes ("float32 float64") and of a shape in letters and numbers ("n d", "" for one)."""
    wanted = f"{' or '.join(dtypes.split())} ({', '.join(shape.split())})"

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if not isinstance(value, Tensor) or _name(value.dtype) not in dtypes.split():
            _refuse(where, wanted, value)
        letters = shape.split()
        if value.ndim != len(letters):
            _refuse(where, wanted, value)
        for letter, size in zip(letters, value.shape, strict=True):
            known = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            if known != size:
                _refuse(where, f"{wanted} with {letter} = {known}", value)
        _in_range(value, where, low, high)
        if law is not None and (fault := law(value)):
            raise _Fault(f"{where} {fault}")

    return check


def finite(*, any_type: bool = False) -> Check:
    """A tensor of any shape and floating-point type (or any type), of finite numbers."""

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if not isinstance(value, Tensor) or not (any_type or value.is_floating_point()):
            _refuse(where, "a tensor" if any_type else "a tensor of floating-point numbers", value)
        _in_range(value, where, None, None)

    return check


def like(example: Tensor, *, free: int = 0, low: float | None = None) -> Check:
    """A tensor of the example's dtype and of its shape, but for the first `free` dimensions."""
    names = [f"_{k}" if k < free else str(size) for k, size in enumerate(example.shape)]

    def check(value: Any, where: str, sizes: Sizes) -> None:
        tensor(_name(example.dtype), " ".join(names), low=low)(value, where, {})

    return check


def _in_range(value: Tensor, where: str, low: float | None, high: float | None) -> None:
    if value.numel() == 0 or value.dtype == torch.bool or value.is_complex():
        return
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise _Fault(f"{where} has NaN or infinity in {bad} of {value.numel()} numbers; expected finite ones")
    least, most = value.min().item(), value.max().item()
    if (low is not None and least < low) or (high is not None and most > high):
        _refuse(where, f"in {_interval(low, high)}", f"{least:.6g} to {most:.6g}")


def _interval(low: float | None, high: float | None) -> str:
    return f"[{'-inf' if low is None else f'{low:g}'}, {'inf' if high is None else f'{high:g}'}]"


def number(
    kind: type[int] | type[float] = float, *, low: float | None = None, high: float | None = None, finite: bool = True
) -> Check:
    """A number, no boolean and no text; whole ones below 2^53 in size."""
    high = WHOLE if high is None and kind is int else high
    low = -WHOLE if low is None and kind is int else low
    wanted = f"a {'whole ' if kind is int else ''}number in {_interval(low, high)}"

    def check(value: Any, where: str, sizes: Sizes) -> None:
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not fits or (finite and not _finite(value)):
            _refuse(where, wanted, value)
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            if finite or not math.isnan(value):
                _refuse(where, wanted, value)

    return check


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def text(*known: str) -> Check:
    """Text, one of `known` where any are given."""

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if not isinstance(value, str) or (known and value not in known):
            _refuse(where, f"one of {', '.join(known)}" if known else "text", value)

    return check


def sha256(value: Any, where: str, sizes: Sizes) -> None:
    """A `Check`: a hash in hexadecimal."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        _refuse(where, "a SHA-256 in hexadecimal", value)


def anything(value: Any, where: str, sizes: Sizes) -> None:
    """A `Check` that takes all."""


def exactly(wanted: Any) -> Check:
    """One value."""

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if type(value) is not type(wanted) or value != wanted:
            _refuse(where, _shown(wanted), value)

    return like(wanted) if isinstance(wanted, Tensor) else check


def maybe(check: Check) -> Check:
    """None, or what fits."""
    return lambda value, where, sizes: None if value is None else check(value, where, sizes)


def listed(item: Check, *, length: int | None = None) -> Check:
    """A list of what fits."""
    wanted = "a list" if length is None else f"a list of {length}"

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            _refuse(where, wanted, f"{len(value)} entries" if isinstance(value, list) else value)
        for k, each in enumerate(value):
            item(each, f"{where}[{k}]", sizes)

    return check


def sequence(items: Sequence[Check]) -> Check:
    """A list whose entries fit these, one each."""

    def check(value: Any, where: str, sizes: Sizes) -> None:
        listed(anything, length=len(items))(value, where, sizes)
        for k, (each, item) in enumerate(zip(value, items, strict=True)):
            item(each, f"{where}[{k}]", sizes)

    return check


def mapped(item: Check, key: Check | None = None) -> Check:
    """An object of any names (or of keys that fit) whose values fit."""

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if not isinstance(value, Mapping):
            _refuse(where, "an object", value)
        for name, each in value.items():
            (key or text())(name, f"a name in {where or 'it'}", sizes)
            item(each, _below(where, name), sizes)

    return check


def record(required: Mapping[Any, Check], optional: Mapping[Any, Check] | None = None) -> Check:
    """An object of just these names."""
    known = {**required, **(optional or {})}
    kinds = {(type(name), name) for name in known}  # True is no 1

    def check(value: Any, where: str, sizes: Sizes) -> None:
        if not isinstance(value, Mapping):
            _refuse(where, "an object", value)
        if absent := [name for name in required if name not in value]:
            raise _Fault(f"{_below(where, absent[0])} is missing")
        if unknown := [name for name in value if (type(name), name) not in kinds]:
            raise _Fault(f"{_below(where, unknown[0])} is not expected there")
        for name, each in value.items():
            known[name](each, _below(where, name), sizes)

    return check


def _below(where: str, name: Any) -> str:
    short = reprlib.repr(name)[1:-1] if isinstance(name, str) else repr(name)
    return f"{where}.{short}" if where else short


def covariance(rounding: float) -> Law:
    """Symmetric without negative eigenvalues, but for `rounding` times d times the largest entry.

    By a Cholesky factorization, a tenth of the cost of the eigenvalues.
    """

    def law(value: Tensor) -> str:
        if value.numel() == 0:
            return ""
        value = value.double()
        slack = rounding * len(value) * float(value.abs().max())
        if float((value - value.T).abs().max()) > slack:
            return f"must be symmetric; it is off by {float((value - value.T).abs().max()):.3g}"
        lifted = value + (slack or 1.0) * torch.eye(len(value), dtype=value.dtype)
        if int(torch.linalg.cholesky_ex(lifted).info):
            least = float(torch.linalg.eigvalsh(value)[0])
            return f"must be a covariance; it has the eigenvalue {least:.3g}" if least < -slack else ""
        return ""

    return law


def equal_to(wanted: Tensor) -> Law:
    """A `Law`: the same numbers."""
    return lambda value: "" if torch.equal(value, wanted.cpu()) else "must be what the others have"


def ascending(value: Tensor) -> str:
    """A `Law`: entries in order."""
    return "" if bool((value[1:] >= value[:-1]).all()) else "must be in ascending order"
