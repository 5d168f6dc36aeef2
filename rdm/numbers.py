"""What a parameter may be, said once, in its annotation, and checked when it is given.

`steps: Count`: whole numbers are no truth values, text is no number, NaN is in no range, a class is no object of it.
`validated` checks what a function or class is given; registries check all of their members by it. A dataclass that
nobody registers calls `check_fields(self)`.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from rdm.errors import InputError

if TYPE_CHECKING:
    from typing import Annotated as Float
elif "jaxtyping" in sys.modules:  # of the tests, which have imported it before and check shapes by it
    from jaxtyping import Float
else:

    class Float:
        """Float[Tensor, "n d"]: a tensor; its shape is said to readers."""

        def __class_getitem__(cls, described: tuple[Any, str]) -> Any:
            return described[0]


T = TypeVar("T", bound=Callable[..., Any])


class ParameterError(InputError):
    """A parameter of another type or outside its range; `parameter` is its name, `text` the error without the owner."""

    def __init__(self, owner: str, parameter: str, expected: Any, value: object):
        self.value, self.parameter, self.text = (
            value,
            parameter,
            f"{parameter} must be {words(expected)}; got {_shown(value)}",
        )
        super().__init__(f"{owner}: {self.text}" if owner else self.text)


class Range(NamedTuple):
    """What a number must lie in; ends that are `above` or `below` are excluded."""

    least: float = -float("inf")
    most: float = float("inf")
    above: float = -float("inf")
    below: float = float("inf")

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float), "its type is checked first"
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = ("from", self.least), ("above", self.above), ("to", self.most), ("and below", self.below)
        return " ".join(f"{word} {end:.12g}" for word, end in words if abs(end) < float("inf"))


EDGE = 1e50  # its square, and the cube of that, stay in float64's range

Count = Annotated[int, Range(least=1, most=2**24)]
Several = Annotated[int, Range(least=2, most=2**24)]
Size = Annotated[int, Range(least=0, most=2**24)]
Steps = Annotated[int, Range(least=1)]
Seed = Annotated[int, Range(least=-(2**63), most=2**63 - 1)]
Positive = Annotated[float, Range(least=1 / EDGE, most=EDGE)]
Nonnegative = Annotated[float, Range(least=0, most=EDGE)]
Share = Annotated[float, Range(least=0, below=1)]
Fraction = Annotated[float, Range(least=0, most=1)]
Workers = Annotated[int, Range(least=0, most=256)]  # more processes than that only fill the memory


def validated(build: T, name: str = "") -> T:
    """Check what a function, or a class when it is built, is given against its annotations; defaults are not checked.

    Errors call it by `name`, its own by default.

    Raises:
        ParameterError: at the call, for the first parameter that does not fit.
    """
    if not isinstance(build, type):
        return _checking(build, name or getattr(build, "__name__", repr(build)))  # type: ignore[return-value]
    if isinstance(build.__init__, types.FunctionType):
        build.__init__ = _checking(build.__init__, name or build.__name__)  # type: ignore[misc]
    return build  # type: ignore[return-value]


def check_given(build: Callable[..., Any], given: Mapping[str, Any], owner: str) -> None:
    """Check arguments by name against the annotations of a function.

    Raises:
        ParameterError: the first that does not fit.
    """
    hints = hints_of(build)
    for name, value in given.items():
        if name in hints and not _fits(value, hints[name]):
            raise ParameterError(owner, name, hints[name], value)


def check_fields(owner: Any) -> None:
    """Check every field of a dataclass against its annotation.

    Raises:
        ParameterError: a value of another type, outside the range or not among the choices.
    """
    for field in dataclasses.fields(owner):
        check(field.name, getattr(owner, field.name), field.type)


def check(name: str, value: Any, expected: Any) -> None:
    """Check one value against an annotation.

    >>> check("steps", 2.5, Count)
    Traceback (most recent call last):
    rdm.numbers.ParameterError: steps must be a whole number from 1 to 16777216; got 2.5
    """
    if not _fits(value, expected):
        raise ParameterError("", name, expected, value)


def _checking(function: Callable[..., Any], owner: str) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # a missing or unknown argument: the call itself says so
            return function(*args, **kwargs)
        check_given(function, given, owner)
        return function(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]  # for readers that do not look behind wrappers
    return call


@functools.cache
def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by parameter, and of what is returned; none where they name what cannot be found."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()} | {"return": None}
    return {name: hint for name, hint in hints.items() if name in kinds and kinds[name] not in variadic}


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value is what an annotation says; True for annotations that are not understood."""
    origin, parts = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return _fits(value, parts[0]) and all(value in extra for extra in _ranges(parts))
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin is tuple and ... not in parts:
        return _is_sequence(value) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin in (list, tuple):
        return _is_sequence(value) and len(value) > 0 and all(_fits(item, parts[0]) for item in value)
    if origin is Sequence:
        return _is_sequence(value) and all(_fits(item, parts[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in value.values())
    return callable(value) if origin is Callable else _is_one(value, expected)


def _ranges(parts: tuple[Any, ...]) -> list[Container]:
    """What an annotation says beside the type: a `Range`, or anything else that values are in or not."""
    return [extra for extra in parts[1:] if isinstance(extra, Container) and not isinstance(extra, str)]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_one(value: Any, expected: Any) -> bool:
    if expected is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if expected is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if expected is None:
        return value is None
    if not isinstance(expected, type) or expected.__module__.startswith("jaxtyping"):
        return True
    try:
        return isinstance(value, expected)
    except TypeError:  # a protocol that cannot be asked
        return True


def words(expected: Any) -> str:
    """An annotation as errors say it.

    >>> words(Count | None)
    'a whole number from 1 to 16777216 or None'
    """
    origin, parts = get_origin(expected), get_args(expected)
    if origin is Annotated:
        ranges = " and ".join(map(str, _ranges(parts)))
        return f"{words(parts[0])} {ranges}".strip()
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(part) for part in parts))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in parts)
    if origin is tuple and ... not in parts:
        return f"{len(parts)} values, each {' or '.join(dict.fromkeys(map(words, parts)))}"
    if origin in (list, tuple):
        return f"a list of at least one, each {words(parts[0])}"
    if origin in (Sequence, dict, Mapping):
        return f"a {'list' if origin is Sequence else 'mapping'}, each {words(parts[-1])}"
    if origin is Callable:
        return "a function"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return names.get(expected) or getattr(expected, "__name__", str(expected))


def _shown(value: object) -> str:
    """A value in one short line; a class or function in the place of what it builds comes with the remedy."""
    plain = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if inspect.isclass(plain) or inspect.isfunction(plain):
        return f"{plain.__name__} itself, which was not called; add ()"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
