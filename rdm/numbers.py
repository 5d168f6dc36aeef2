"""Hyperparameters checked by their annotations: type, range and choice, refused by the parameter's name.

A class annotates its fields once, `projections: Count = 128`, and calls `check_fields(self)`; a function calls
`check("steps", steps, Count)`. Whole numbers are no truth values, text is no number, NaN is in no range.
"""

import dataclasses
import numbers
import reprlib
import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from rdm.errors import InputError


class Range(NamedTuple):
    """What a number must lie in; ends that are `above` or `below` are excluded."""

    least: float = -float("inf")
    most: float = float("inf")
    above: float = -float("inf")
    below: float = float("inf")

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float | numbers.Real), "its type is checked first"
        value = float(value)
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = ("from", self.least), ("above", self.above), ("to", self.most), ("and below", self.below)
        return " ".join(f"{word} {end:.12g}" for word, end in words if abs(end) < float("inf"))


EDGE = 1e50  # its square, and the cube of that, stay in float64's range

Count = Annotated[int, Range(least=1, most=2**24)]
Seed = Annotated[int, Range(least=-(2**63), most=2**63 - 1)]
Positive = Annotated[float, Range(least=1 / EDGE, most=EDGE)]


def check_fields(owner: Any) -> None:
    """Check every field of a dataclass against its annotation.

    Raises:
        InputError: a value of another type, outside the range or not among the choices.
    """
    for field in dataclasses.fields(owner):
        check(field.name, getattr(owner, field.name), field.type)


def check(name: str, value: Any, expected: Any) -> None:
    """Check one value against an annotation.

    >>> check("steps", 2.5, Count)
    Traceback (most recent call last):
    rdm.errors.InputError: steps must be a whole number from 1 to 16777216; got 2.5
    """
    if not _fits(value, expected):
        raise InputError(f"{name} must be {_words(expected)}; got {reprlib.repr(value)}")


def _fits(value: Any, expected: Any) -> bool:
    origin, parts = get_origin(expected), get_args(expected)
    if origin is Annotated:
        ranges = (extra for extra in parts[1:] if isinstance(extra, Range))
        return _fits(value, parts[0]) and all(value in allowed for allowed in ranges)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin in (list, tuple):
        return isinstance(value, origin) and len(value) > 0 and all(_fits(item, parts[0]) for item in value)
    if expected in (int, float):
        kind = numbers.Integral if expected is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, expected) if isinstance(expected, type) and expected is not Any else True


def _words(expected: Any) -> str:
    origin, parts = get_origin(expected), get_args(expected)
    if origin is Annotated:
        ranges = " and ".join(str(extra) for extra in parts[1:] if isinstance(extra, Range))
        return f"{_words(parts[0])} {ranges}".strip()
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in parts)
    if origin in (list, tuple):
        return f"a list of at least one, each {_words(parts[0])}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return names.get(expected) or getattr(expected, "__name__", str(expected))
