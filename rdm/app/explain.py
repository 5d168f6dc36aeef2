"""What gin and constructors say, in one line: the place, the full name of the parameter, and the remedy."""

import inspect
import re
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

from rdm.app.bindings import Binding, Text
from rdm.errors import InputError, UnknownNameError
from rdm.numbers import ParameterError, hints_of
from rdm.registry import nearest

Known = Mapping[str, Callable[..., Any]]  # what builds, by full name


def own_text(error: BaseException) -> str:
    """An error's own text without the call chain that gin appends, on one line."""
    return " ".join(str(error).split("\n  In call to configurable")[0].split())


def placed(error: Exception, written: Sequence[Binding], known: Known, name: str | None = None) -> InputError:
    """An error of building what is called `name`, or gin says it is, with the line that bound the parameter."""
    called = re.search(r"In call to configurable '(\w+)' \((.*?)\)(?: in scope '.*')?(?:\n|$)", str(error))
    name = name or next((full for full, build in known.items() if called and str(build) == called[2]), None)
    text = own_text(error).partition(" No values supplied by Gin")[0]
    if lacking := re.search(r"missing \d+ required .*?: '(\w+)'", text):
        text = f"{name or 'it'} needs {lacking[1]!r}; bind it, or refer to it without ()"
        found = [b for b in written if any(reference.name == name for reference in b.references)]
    elif isinstance(error, ParameterError):
        joint = "." if error.parameter.isidentifier() else ": "
        text = f"{name}{joint}{error.text}{_reference(error, known.get(name or ''), known)}" if name else text
        found = [b for b in written if b.name == name and b.parameter == error.parameter]
    else:
        own = [b for b in written if name in (None, b.name)]
        found = [b for b in own if re.search(rf"\b{b.parameter}\b", text)] or (own if len(own) == 1 else [])
        if name and name != "rdm.train":
            given = {b.parameter: b.place for b in own} if not found else {}
            where = ", ".join(f"{parameter} by {place}" for parameter, place in given.items())
            text = f"{name}: {text}" + (f"; it was given {where}" if where else "")
    return InputError(f"{found[-1].place}: {text}" if found else text)


def _reference(error: ParameterError, build: Callable[..., Any] | None, known: Known) -> str:
    """How gin refers to the member that a text names, where the parameter takes one."""
    hint = {} if build is None else hints_of(_function(build))
    texts = error.value if isinstance(error.value, list | tuple) else [error.value]
    for text in [each for each in texts if isinstance(each, str) and error.parameter in hint]:
        for full, made in known.items():
            if full.endswith(f".{text}") and (line := _slot(hint[error.parameter], made, f"@{full}")):
                return f"; refer to it by {line}"
    return ""


def missing(binding: Binding, reached: set[str], known: Known) -> str:
    """The line that would make something read a binding."""
    reference = f"@{binding.scope}/{binding.name}".replace("@/", "@")
    for name in sorted(reached & set(known), key=lambda name: (name != "rdm.train", name)):
        for parameter, hint in hints_of(_function(known[name])).items():
            if parameter != "return" and (line := _slot(hint, known[binding.name], reference)):
                return f"add {name}.{parameter} = {line}"
    return f"refer to it by {reference}()"


def _function(build: Callable[..., Any]) -> Callable[..., Any]:
    return build.__init__ if isinstance(build, type) else build


def _slot(hint: Any, build: Callable[..., Any], reference: str) -> str:
    """How a parameter of this annotation takes what a function or class builds; empty if it does not."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    made = build if isinstance(build, type) else hints_of(build).get("return")
    if made is None:
        return ""
    if hint == made or (isinstance(hint, type) and isinstance(made, type) and issubclass(made, hint)):
        return f"{reference}()"
    if origin in (Union, types.UnionType):
        return next(filter(None, (_slot(part, build, reference) for part in parts)), "")
    if origin in (list, tuple, Sequence) and (inner := _slot(parts[0], build, reference)):
        return f"[{inner}]"
    if origin in (dict, Mapping) and (inner := _slot(parts[1], build, reference)):
        return f"{{'name': {inner}}}"
    if origin is Callable and _slot(parts[-1], build, reference):
        return reference
    return ""


def in_one_line(error: Exception, part: Text, known: Known) -> InputError:
    """An error of gin's reading, with the place, and the nearest valid name where one is unknown."""
    text, _, _ = str(error).partition("\n  In bindings string line ")
    text = " ".join(text.split())
    place = part.place(_line_of(error, len(part.places)))
    if isinstance(error, SyntaxError):
        text = error.msg
    elif isinstance(error, tokenize.TokenError):
        text, place = f"{error.args[0]}: a bracket or quote is not closed", part.place(len(part.places))
    if match := re.search(r"Failed to parse token ('.*?')", text):
        text = f"{match[1]} is no value; a text is written in quotes, a reference with @, a macro with %"
    if match := re.search(r"No configurable matching (?:reference )?'@?([^'()]+)", text):
        return UnknownNameError(f"{place}: unknown name {match[1]!r}{_nearest_configurable(match[1], known)}")
    if match := re.search(r"(?:'|\")(\S+?)(?:'|\") doesn't have a parameter named (?:'|\")(\S+?)(?:'|\")", text):
        full = next((name for name in known if name == match[1] or name.endswith(f".{match[1]}")), None)
        accepted = inspect.signature(known[full]).parameters if full else ()
        return UnknownNameError(f"{place}: {match[1]} has no parameter {match[2]!r}{nearest(match[2], accepted)}")
    if isinstance(error, SyntaxError):
        text = f"{text.removesuffix('.')}; a line binds NAME = VALUE, as rdm.train.steps = 100"
    return InputError(f"{place}: {text}")


def _line_of(error: Exception, default: int) -> int:
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    found = re.search(r"In bindings string line (\d+)", str(error))
    return int(found[1]) if found else default


def _nearest_configurable(name: str, known: Iterable[str]) -> str:
    short = {full.rsplit(".", 1)[1]: full for full in known}
    hints = nearest(name, known), nearest(name.rsplit(".", 1)[-1], [*short])
    return next((hint for hint in hints if "did you mean" in hint), "; `rdm list` names what there is")
