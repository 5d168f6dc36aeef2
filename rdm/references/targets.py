"""Bound targets: what an objective makes of a reference, kept on disk and read again at the next start."""

import dataclasses
import hashlib
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm import distributed
from rdm.errors import CorruptFileError, InputError
from rdm.files.schema import anything, exactly, expect, finite, mapped, record
from rdm.files.store import digest, read_tensors, write_tensors
from rdm.matching.objective import Objective
from rdm.matching.real import Real
from rdm.matching.statistic import Statistic
from rdm.registry import objectives

KIND = "rdm target 1"
AGAIN = "the cache is not used, the objective is bound again"
Bound = tuple[Statistic, Any]


def bound(objective: Objective, real: Real, cache: Path | None = None) -> Bound:
    """`objective.bind(real)`, or the same read from the folder `cache`, on the reference's device.

    A file is named and checked by the hash of the objective (registered name, every hyperparameter, the code that
    binds it) and of the reference. One that cannot be read, used or written is no cache: a warning says so. Nothing is
    kept of a reference, or of code, whose hash is not to be had (see `rdm.matching.real.Rows.identity`).

    Where `real` is shared, every rank calls this at the same time: each measures its share of the rows, and all take
    the file or none does. Otherwise no rank waits for another.
    """
    key = None if cache is None else _key(objective, real)
    if cache is None or key is None:
        return objective.bind(real)
    path = Path(cache) / f"target-{digest({}, key)[:16]}.safetensors"
    found = _read(path, key, objective, real.place)
    if real.shared:
        found = found if distributed.total(float(found is None)) == 0 else None
    if found is not None:
        return found
    statistic, target = objective.bind(real)
    if not real.shared or distributed.rank() == 0:
        _write(path, key, (statistic, target))
    return statistic, target


def _key(objective: Objective, real: Real) -> dict[str, Any] | None:
    """What a target follows from, as JSON; None where that cannot be told."""
    reference, code = real.identity, [_code(type(each)) for each in _within(objective)]
    if reference is None or None in code:
        return None
    return {"kind": KIND, "objective": _described(objective), "code": code, "reference": reference}


def _within(objective: Objective) -> list[Objective]:
    """An objective, and those that it is made of."""
    fields = dataclasses.fields(objective) if dataclasses.is_dataclass(objective) else ()
    held = [getattr(objective, field.name) for field in fields]
    return [objective, *(inner for each in held if isinstance(each, Objective) for inner in _within(each))]


def _described(value: Any) -> Any:
    """An objective's name and hyperparameters, those that are objectives included."""
    if isinstance(value, Objective):
        kind = type(value)
        names = [name for name, entry in objectives.items() if entry.build is kind]
        fields = {f.name: _described(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore
        return {"name": names or f"{kind.__module__}.{kind.__qualname__}", "hyperparameters": fields}
    return [_described(each) for each in value] if isinstance(value, list | tuple) else value


def _code(kind: type) -> str | None:
    """A hash of the source of every module that the objective's code reaches in its own packages and in rdm."""
    found: dict[str, str] = {}
    waiting, roots = [kind.__module__], {"rdm", kind.__module__.partition(".")[0]}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = inspect.getsource(sys.modules[name])
        except (OSError, TypeError, KeyError):
            return None
        owners = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
        waiting += [m for m in owners if isinstance(m, str) and m in sys.modules and m.partition(".")[0] in roots]
    return hashlib.sha256("".join(f"{name}\n{text}" for name, text in sorted(found.items())).encode()).hexdigest()


def _read(path: Path, key: dict[str, Any], objective: Objective, place: torch.device) -> Bound | None:
    """What a file holds, or None where there is none, or none that can be used."""
    try:
        if not path.exists():
            return None
        tensors, description = read_tensors(path)
        expect(description, record({"key": exactly(key), "bound": anything}), path, AGAIN)
        expect(tensors, mapped(finite(any_type=True)), path, AGAIN)
        there = {name: tensor.to(place) for name, tensor in tensors.items()}
        return _decoded(description["bound"], there, objective, path)
    except (InputError, OSError) as problem:
        warnings.warn(f"{problem}; {AGAIN}", stacklevel=3)
        return None


def _write(path: Path, key: dict[str, Any], value: Bound) -> None:
    try:
        tensors: dict[int, tuple[str, Tensor]] = {}
        plain = _encoded(value, tensors)
        write_tensors(path, dict(tensors.values()), {"key": key, "bound": plain})
    except TypeError as error:
        warnings.warn(f"a target is not kept: {error}", stacklevel=3)
    except OSError as error:  # full, read-only, or no folder
        warnings.warn(f"the cache {path.parent} cannot be written ({error}); going on without", stacklevel=3)


def _fields(kind: type) -> list[str] | None:
    """What a NamedTuple or a dataclass is made of; None for any other class."""
    if issubclass(kind, tuple):
        return list(kind._fields) if hasattr(kind, "_fields") else None  # type: ignore[attr-defined]
    return [f.name for f in dataclasses.fields(kind) if f.init] if dataclasses.is_dataclass(kind) else None


def _encoded(value: Any, tensors: dict[int, tuple[str, Tensor]]) -> Any:
    """A tree of NamedTuples, dataclasses, containers, numbers and tensors as plain JSON; a tensor is stored once."""
    if isinstance(value, Tensor):
        return {"tensor": tensors.setdefault(id(value), (f"{len(tensors):06d}", value))[0]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    names = _fields(type(value))
    if names is not None:
        held = {name: _encoded(getattr(value, name), tensors) for name in names}
        return {"of": type(value).__qualname__, "fields": held}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encoded(each, tensors) for each in value]}
    raise TypeError(f"cannot store a {type(value).__name__}; only tensors, numbers, NamedTuples and dataclasses")


def _decoded(plain: Any, tensors: Mapping[str, Tensor], objective: Objective, path: Path) -> Bound:
    """Inverse of `_encoded`, of the classes that the objective's `bind` is annotated with and no others."""
    classes = {kind.__qualname__: kind for each in _within(objective) for kind in _reachable(each)}

    def walk(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        if "of" not in node:
            ((kind, content),) = node.items()
            return tensors[content] if kind == "tensor" else {"tuple": tuple, "list": list}[kind](map(walk, content))
        kind = classes[node["of"]]
        held = {name: walk(each) for name, each in node["fields"].items()}
        hints = _hints(kind)
        for name in _fields(kind) or []:
            if not _fits(held[name], hints.get(name, Any)):
                raise TypeError(f"{kind.__name__}.{name} must be {hints[name]}; got {type(held[name]).__name__}")
        return kind(**held)

    try:
        statistic, target = walk(plain)
        if not isinstance(statistic, Statistic):
            raise TypeError(f"expected a statistic; got {type(statistic).__name__}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is no target of {type(objective).__name__} ({error}); it is damaged") from error
    return statistic, target


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of an annotation, as far as that names types."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is Any or kind is typing.Literal:
        return True
    if isinstance(value, Tensor):
        return kind is Tensor or getattr(kind, "array_type", None) is Tensor
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(kind, type):
        return kind is None and value is None
    return not hasattr(kind, "array_type") and isinstance(value, kind)


def _hints(kind: Any) -> dict[str, Any]:
    """Annotations of a class or function; none where a name in them is unknown."""
    try:
        return typing.get_type_hints(kind)
    except NameError:
        return {}


def _reachable(objective: Objective) -> set[type]:
    """Classes that the annotations of `bind` name, their fields', and those below them.

    Where `bind` says less than that (`Any`), those of the objective's own module.
    """
    hint = _hints(type(objective).bind).get("return", Any)
    named, found = set(_named(hint)), set()
    if object in named or not named:
        named |= {v for v in vars(sys.modules[type(objective).__module__]).values() if isinstance(v, type)}
    while named:
        kind = named.pop()
        if kind in found or kind is object:
            continue
        found.add(kind)
        if _fields(kind) is not None or inspect.isabstract(kind):
            named |= {each for hint in _hints(kind).values() for each in _named(hint)}
            named |= set(kind.__subclasses__())
    return {kind for kind in found if _fields(kind) is not None}


def _named(hint: Any) -> Iterator[type]:
    """Classes in an annotation; `object` for what says nothing."""
    if hint is Any:
        yield object
    elif isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for each in typing.get_args(hint):
        yield from _named(each)
