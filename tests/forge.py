"""Files of rdm with one entry changed and every hash made right again."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.files.store import read_tensors, write_tensors

Change = tuple[str, Callable[[], Any]]
ABSENT = object()


def altered(value: Tensor) -> Iterator[tuple[str, Any]]:
    """A tensor flipped, cut, of other types and of other shapes; values only where no valid file could hold them."""
    if value.is_floating_point() and value.numel():
        for wrong in (math.nan, -math.inf):
            flipped = value.clone()
            flipped.view(-1)[-1] = wrong
            yield f"flipped to {wrong}", flipped
    elif value.dtype == torch.int64 and value.numel():
        flipped = value.clone()
        flipped.view(-1)[-1] = -(2**62)
        yield "flipped to -2^62", flipped
    for dim in range(value.ndim):
        yield f"cut along {dim}", value.narrow(dim, 0, value.shape[dim] - 1).clone()
    yield "empty", value.new_zeros(0)
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64):
        if dtype != value.dtype:
            yield f"as {dtype}", value.to(dtype)
    yield "with one more dimension", value[None].clone()
    if value.ndim > 1:
        yield "flat", value.flatten().clone()
        if value.shape != value.mT.shape or bool(torch.equal(value, value.mT)):  # else it is another valid value
            yield "transposed", value.mT.contiguous()
    yield "missing", ABSENT


def forged(value: Any) -> Iterator[tuple[str, Any]]:
    """Other types and sizes in the place of a JSON value, and none."""
    for other in (
        None,
        True,
        -1,
        0,
        1.5,
        -1e308,
        math.nan,
        2**70,
        "x",
        "",
        str(value),
        [],
        [[]],
        {},
        {"a": 1},
        [value],
    ):
        if type(other) is not type(value) or other != value:
            yield repr(other)[:30], other
    yield "missing", ABSENT


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of every entry of a tree of dicts and lists, the root left out."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: tuple, value: Any) -> Any:
    """A copy of a tree with one entry changed, or without it."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    changed = put(copy[path[0]], path[1:], value)
    if changed is ABSENT:
        del copy[path[0]]
    else:
        copy[path[0]] = changed
    return copy


def trees(tree: Any) -> Iterator[tuple[str, Any]]:
    """A tree of values and tensors with each of its entries changed in every way."""
    for path in places(tree):
        value = at(tree, path)
        for what, other in altered(value) if isinstance(value, Tensor) else forged(value):
            yield f"{'.'.join(map(str, path))} {what}", put(tree, path, other)
        if isinstance(value, dict):
            yield f"{'.'.join(map(str, path))} with an entry more", put(tree, (*path,), {**value, "more": 1})


def forgeries(path: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What writes each changed form of a file of `rdm.files.store.write_tensors`."""
    tensors, description = read_tensors(path)
    for name, value in tensors.items():
        for what, other in altered(value):
            changed = put(tensors, (name,), other)
            yield f"{name} {what}", lambda at, t=changed: write_tensors(at, t, description)
    yield "a tensor more", lambda at: write_tensors(at, {**tensors, "more": torch.ones(2)}, description)
    for what, other in trees(description):
        yield what, lambda at, d=other: write_tensors(at, tensors, d)
