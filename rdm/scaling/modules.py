"""Modules of a generator by name: those that compute their activations again, and those that are compiled.

Both happen in place, and names of parameters stay as they are, so that weights, averages and checkpoints fit.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rdm.errors import InputError
from rdm.numbers import check, check_fields
from rdm.registry import nearest
from rdm.scaling.sharding import Names, entries, matches

M = TypeVar("M", bound=nn.Module)


def named(model: nn.Module, names: Names) -> list[nn.Module]:
    """Modules by patterns of their names, in which `*` stands for one part or some of its letters ("net.blocks.*").

    True stands for the entries of the outermost `nn.ModuleList`s, False for none.

    Raises:
        InputError: a pattern that no module has, or only lists of modules, which compute nothing; no list.
    """
    check("names of modules", names, Names)
    modules = {name: m for name, m in model.named_modules() if name and type(m).forward is not nn.Module.forward}
    owner = type(model).__name__
    if isinstance(names, bool):
        found = list(entries(model, "")) if names else []
        if names and not found:
            raise InputError(f"{owner} has no nn.ModuleList, whose entries True stands for; name its modules")
        return [modules[name] for name in found if name in modules]
    for pattern in names:
        if not any(matches(name, pattern) for name in modules):
            raise InputError(f"{owner} has no module {pattern!r} that computes{nearest(pattern, modules)}")
    return [module for name, module in modules.items() if any(matches(name, pattern) for pattern in names)]


def recompute(model: M, names: Names = True) -> M:
    """Let modules keep their inputs alone and compute again in the backward pass, in place; returns the model.

    Gradients are the same to the bit, random numbers and autocast included. Cost: one more forward pass of the modules,
    in place of the memory of their activations; one module's at a time.

    Source: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost", by `torch.utils.checkpoint`.

    Raises:
        InputError: see `named`.

    >>> import torch, rdm
    >>> model = rdm.recompute(rdm.generator("mlp_flow", width=8), ["blocks.*"])
    """
    for module in named(model, names):
        if not isinstance(module, _Recomputing):
            module.__class__ = _recomputing(type(module))
    return model


@cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """One class for all modules of a kind, as they share a compilation by it."""
    return type(kind.__name__, (_Recomputing, kind), {"__module__": kind.__module__})


class _Recomputing:
    """Before a module's own class: a copy of the module computes by its own weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, **kwargs)


@dataclass(frozen=True)
class Compile:
    """What of a generator goes through `torch.compile`, in place.

    Args:
        modules: names of modules (see `named`); True for the layers in the model's lists, of which equal ones share
            one compilation.
        backend: of `torch.compile`. "inductor" needs a C++ compiler on a CPU.
        dynamic: one program for all sizes; None lets torch find out which sizes change.
    """

    modules: Names = True
    backend: str = "inductor"
    dynamic: bool | None = None

    def __post_init__(self) -> None:  # noqa: D105
        check_fields(self)
        if self.backend not in torch.compiler.list_backends(exclude_tags=()):
            known = nearest(self.backend, torch.compiler.list_backends(exclude_tags=()))
            raise InputError(f"torch.compile has no backend {self.backend!r} here{known}")


def compiled(model: M, wanted: bool | Compile) -> M:
    """Compile modules of a model in place; nothing for False. Returns the model.

    A compiled module gives what it gave but for rounding, in both passes of a population's step, of which the first
    has no gradient and is a program of its own.

    Raises:
        InputError: see `named`.
    """
    chosen = Compile() if wanted is True else wanted or Compile(modules=False)
    for module in named(model, chosen.modules):
        module.compile(backend=chosen.backend, dynamic=chosen.dynamic)
    return model
