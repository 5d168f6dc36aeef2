"""Modules of a generator split over ranks: each holds a part of every weight and gathers the rest while it computes.

By FSDP2 of torch (`torch.distributed.fsdp.fully_shard`), a module at a time: weights are split along their first
dimension, gathered before the module's forward and backward pass and let go of afterwards; gradients are summed, never
averaged. Modules that are not named stay whole on every rank. Every rank must call a sharded module equally often.

Source: Zhao et al. (2023), "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel".
"""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from rdm.distributed import active, rank, world_size
from rdm.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

Names = bool | Sequence[str]  # patterns of names of modules, or True for the layers in the model's lists
M = TypeVar("M", bound=nn.Module)


def chosen(model: nn.Module, names: Names) -> list[str]:
    """Names of the modules to be sharded, inner ones before those that hold them.

    Args:
        model: whose modules.
        names: patterns of names, in which `*` stands for one part ("blocks.*" for blocks.0, blocks.1, ... and not for
            blocks.0.norm); True for the entries of the outermost `nn.ModuleList`s; False for none.

    Raises:
        InputError: a pattern that no module with weights has; a weight that modules inside and outside share; one
            that is a single number.
    """
    modules = {name: module for name, module in model.named_modules() if name and _can_be(module)}
    if isinstance(names, bool):
        found = [name for name in entries(model, "") if name in modules] if names else []
        if names and not found:
            raise InputError(
                f"{_owner(model)} has no nn.ModuleList whose entries have weights; shard=True shards those"
            )
    else:
        for pattern in names:
            if not any(matches(name, pattern) for name in modules):
                known = ", ".join(dict.fromkeys(re.sub(r"\d+", "*", name) for name in modules))
                raise InputError(f"{_owner(model)} has no module {pattern!r} with weights; it has {known}")
        found = [name for name in modules if any(matches(name, pattern) for pattern in names)]
    _refuse_shared(model, found)
    for name in found:
        if scalar := next((n for n, p in modules[name].named_parameters() if p.ndim == 0), None):
            raise InputError(
                f"{_owner(model)}.{name}.{scalar} is one number, which cannot be split; give it a dimension"
            )
    return found[::-1]


def sharded(model: M, names: Names, device: torch.device, held: str = "float32") -> M:
    """Shard modules of a model over all ranks in place, and move the rest to the device; alone, only move it.

    Every rank must hold the same weights. A device never holds more whole modules than one at a time.

    Args:
        model: changed in place.
        names: see `chosen`.
        device: where it computes.
        held: "bfloat16" gathers sharded modules in it; what is split stays as it is, gradients are summed in float32.

    Raises:
        InputError: see `chosen`.
    """
    found = chosen(model, names)
    if found and active():
        share_out(model, found, line(device), held)
    return placed(model, device)


def placed(module: M, device: torch.device) -> M:
    """The module on a device; left alone where it is there, as tensors of sizes alone must be."""
    there = all(t.device.type == device.type for t in (*module.parameters(), *module.buffers()))
    return module if there and device.index is None else module.to(device)


def line(device: torch.device) -> "DeviceMesh":
    """All ranks, one after the other."""
    from torch.distributed.device_mesh import init_device_mesh  # takes a second to import

    return init_device_mesh(device.type, (world_size(),))


def share_out(model: nn.Module, found: Sequence[str], ranks: "DeviceMesh", held: str) -> None:
    """What `sharded` does with the modules of these names, wherever the model is."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, share_comm_ctx  # as above

    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    policy = low if held == "bfloat16" else MixedPrecisionPolicy()
    modules = dict(model.named_modules())
    parts = []
    for name in found:
        part = fully_shard(modules[name], mesh=ranks, reshard_after_forward=True, mp_policy=policy)
        part.set_gradient_divide_factor(1.0)  # a sum
        part.set_force_sum_reduction_for_comms(True)
        parts.append(part)
    share_comm_ctx(parts)


def copied(model: M) -> M:
    """A copy of a model.

    Raises:
        InputError: it is sharded, and nobody has all of it.
    """
    if is_sharded(model):
        raise InputError(f"{_owner(model)} is sharded and cannot be copied; give the network that the copy is for")
    return copy.deepcopy(model)


def parts_of(model: nn.Module) -> "list[FSDPModule]":
    """The sharded modules of a model."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without which nothing is sharded
    found = [] if fsdp is None else [part for part in model.modules() if isinstance(part, fsdp.FSDPModule)]
    return cast("list[FSDPModule]", found)


def is_sharded(model: nn.Module) -> bool:
    """Whether every rank must take part in calls of the model."""
    return bool(parts_of(model))


def is_split(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether ranks hold different rows of a tensor."""
    return is_split_type(type(tensor))


def is_split_type(kind: type) -> bool:
    """Whether tensors of a type are those of which ranks hold different rows."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(kind, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; all of one that is not sharded."""
    return tensor.to_local() if is_split(tensor) else tensor


def mine(whole: Tensor, like: Tensor) -> Tensor:
    """What this rank holds of a whole tensor where it holds so much of another one of its shape.

    FSDP2 splits n rows into runs of ceil(n / ranks), the last ones shorter or empty.
    """
    if not is_split(like):
        return whole
    size = -(-len(whole) // world_size())
    rows = whole[min(rank() * size, len(whole)) :][:size]
    assert rows.shape == local(like).shape
    return rows


def entries(module: nn.Module, prefix: str) -> Iterator[str]:
    """Names of the entries of the outermost lists; of entries that are lists themselves, theirs."""
    for name, child in module.named_children():
        place = f"{prefix}{name}"
        containers = nn.ModuleList, nn.ModuleDict
        if isinstance(module, nn.ModuleList) and not isinstance(child, containers):
            yield place
        else:
            yield from entries(child, f"{place}.")


def _can_be(module: nn.Module) -> bool:
    """Whether a module computes something by weights of its own; lists of modules are never called."""
    return type(module).forward is not nn.Module.forward and any(True for _ in module.parameters())


def matches(name: str, pattern: str) -> bool:
    """Whether a name is of a pattern, in which `*` stands for one part or some of its letters."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _refuse_shared(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse weights that two sharded modules hold, or one and another place: they are gathered for one at a time."""
    holders: dict[int, set[str]] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        inside = [name for name in names if f"{place}.".startswith(f"{name}.")]
        for p in module.parameters(recurse=False):
            holders.setdefault(id(p), set()).add(min(inside, key=len, default=""))
    if shared := next((found for found in holders.values() if len(found) > 1), None):
        places = " and ".join(sorted(name or "the rest" for name in shared))
        raise InputError(f"{_owner(model)} shares weights between {places}, which cannot be sharded apart; name others")


def _owner(model: nn.Module) -> str:
    return type(model).__name__
