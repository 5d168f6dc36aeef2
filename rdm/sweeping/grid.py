"""The axes of a sweep's grid: what each of their values binds, and how it is called."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rdm.errors import InputError


class Value(NamedTuple):
    """One value of an axis: a number or a text to show, and what it binds."""

    label: str | int | float
    bindings: dict[str, str]  # text in gin by parameter


def axes(grid: Mapping[str, Any]) -> dict[str, list[Value]]:
    """Read the axes of a grid.

    A list is the values of the parameter that the axis is named after. A mapping is points with labels, each a mapping
    from parameters to values: {"wide": {"generators.mlp.width": 512, "generators.mlp.depth": 2}}.

    Raises:
        InputError: an axis of another form, without values, or two axes that bind one parameter.
    """
    found = {axis: list(_values(axis, values)) for axis, values in grid.items()}
    owners: dict[str, str] = {}
    for axis, values in found.items():
        if not values:
            raise InputError(f"axis {axis!r} of rdm.sweep.grid has no values; give it some or take it out")
        for parameter in {name for value in values for name in value.bindings}:
            if owners.setdefault(parameter, axis) != axis:
                raise InputError(f"axes {owners[parameter]!r} and {axis!r} both bind {parameter}; join them into one")
    return found


def _values(axis: str, values: Any) -> Iterator[Value]:
    if isinstance(values, list | tuple):
        texts = [_text(value) for value in values]
        short = [_label(value) for value in values]
        labels = short if len(set(short)) == len(set(texts)) else texts
        for label, text in zip(labels, texts, strict=True):
            yield Value(label, {axis: text})
    elif isinstance(values, dict) and all(isinstance(point, dict) for point in values.values()):
        for label, point in values.items():
            yield Value(str(label), {parameter: _text(value) for parameter, value in point.items()})
    else:
        raise InputError(
            f"axis {axis!r} of rdm.sweep.grid must be a list of values, or a mapping from labels to mappings from "
            f"parameters to values; got {values!r}"
        )


def _text(value: Any) -> str:
    """A value as gin writes it; a text that starts with @ is a reference."""
    return value if isinstance(value, str) and value.startswith("@") else repr(value)


def _label(value: Any) -> str | int | float:
    """Numbers as they are; a reference by its name; other values as gin writes them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = value if isinstance(value, str) else repr(value)
    if not text.startswith("@"):
        return text
    scope, _, name = text[1:].removesuffix("()").rpartition("/")
    return (f"{scope}/" if scope else "") + name.rsplit(".", 1)[-1]


def named(labels: Mapping[str, str | int | float]) -> str:
    """A point in words, by its values."""
    return ", ".join(f"{axis.rsplit('.', 1)[-1]} {label}" for axis, label in labels.items())
