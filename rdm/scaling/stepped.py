"""An optimizer's state where tensors are split over ranks: one for any number of ranks, sharded or not."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rdm.files.store import Part
from rdm.scaling.sharding import is_split, local, mine


def optimizer_state(optimizer: torch.optim.Optimizer, stepped: Sequence[Tensor]) -> dict[str, Any]:
    """An optimizer's state; where some of what it steps is split, as if one group held it all in its order."""
    state = optimizer.state_dict()
    if not _mixed(stepped):
        return state
    places = _places(optimizer, stepped)
    kept = {places[k]: value for k, value in state["state"].items()}
    group = {**state["param_groups"][0], "params": sorted(places)}
    return {"state": dict(sorted(kept.items())), "param_groups": [group]}


def load_optimizer(optimizer: torch.optim.Optimizer, stepped: Sequence[Tensor], whole: Mapping[str, Any]) -> None:
    """Take back what `optimizer_state` gave, of whole tensors; each rank its rows of those like its parameters."""
    places, groups = _places(optimizer, stepped), whole["param_groups"]
    if _mixed(stepped):
        own = optimizer.state_dict()["param_groups"]
        groups = [{**groups[0], "params": group["params"]} for group in own]
        kept = {k: whole["state"][place] for k, place in enumerate(places) if place in whole["state"]}
    else:
        kept = whole["state"]
    state = {k: {n: _placed(value, stepped[places[k]]) for n, value in held.items()} for k, held in kept.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def order(optimizer: torch.optim.Optimizer, stepped: Sequence[Tensor]) -> list[Tensor]:
    """The parameters in the order that the numbers in `optimizer_state` give them."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    return list(stepped) if _mixed(stepped) else own


def parts(state: Any) -> Any:
    """A tree of values with this rank's `Part`s of the split tensors in it."""
    if isinstance(state, Mapping):
        return {key: parts(value) for key, value in state.items()}
    return Part(local(state)) if isinstance(state, Tensor) and is_split(state) else state


def _mixed(stepped: Sequence[Tensor]) -> bool:
    """Whether an optimizer needs groups of its own for split tensors (`Weights.groups`)."""
    return len({is_split(p) for p in stepped}) > 1


def _places(optimizer: torch.optim.Optimizer, stepped: Sequence[Tensor]) -> list[int]:
    """Where each of the optimizer's parameters, group by group, is among those that are stepped."""
    places = {id(p): k for k, p in enumerate(stepped)}
    return [places[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _placed(value: Any, like: Tensor) -> Any:
    """A whole value, split as a parameter of its shape is."""
    if not (isinstance(value, Tensor) and is_split(like) and value.shape == like.shape):
        return value
    from torch.distributed.tensor import DTensor

    rows = mine(value, like).to(local(like).device).contiguous()
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
