"""What the state in a checkpoint must hold to be that of a run, checked before any of it is taken."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rdm.files.schema import (
    Check,
    anything,
    equal_to,
    exactly,
    like,
    listed,
    mapped,
    maybe,
    number,
    record,
    sequence,
    tensor,
)
from rdm.scaling.averages import Averages
from rdm.scaling.loss_scale import scale_in_checkpoint
from rdm.scaling.sharding import local, mine
from rdm.scaling.stepped import optimizer_state, order
from rdm.scaling.weights import Weights

SQUARES = "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"  # torch's names of sums of squares


def state_of(
    step: int,
    weights: Weights,
    averages: Averages,
    stepper: torch.optim.Optimizer,
    losses: int,
) -> Check:
    """The check of a whole state at a step, but for those of its losses.

    The optimizer takes a step of zero gradients, which shows what it keeps and moves weights that are read afterwards.
    """
    named = weights.named()
    initial = {name: local(value).detach().clone() for name, value in named.items()}
    optimizer = kept_by(step, stepper, weights.stepped)
    keeps = optimizer_state(stepper, weights.stepped)["state"]  # plain SGD: nothing of any
    whole = record(
        {
            "model": weights.check(weights.state()),
            **averages.check(step),
            "optimizer": optimizer,
            "losses": listed(mapped(anything), length=losses),
            "random": record({"cpu": listed(_random()), "cuda": maybe(listed(tensor("uint8", "r")))}),
            "skips": listed(number(int, low=0, high=step), length=2),
            "seconds": number(low=0),
        },
        scale_in_checkpoint(),
    )
    numbers = {
        name: k for k, p in enumerate(order(stepper, weights.stepped)) for name, other in named.items() if other is p
    }

    def check(value: Any, where: str, sizes: dict[str, int]) -> None:
        """A parameter of which the optimizer keeps nothing had no gradient: it is what it was."""
        whole(value, where, sizes)
        for name, k in numbers.items():
            if k in keeps and k not in value["optimizer"]["state"]:
                law = partial(_unchanged, initial[name], named[name])
                tensor("float32 float64 float16 bfloat16", " ".join(map(str, named[name].shape)), law=law)(
                    value["model"][name], f"model.{name}, of which the optimizer keeps nothing,", sizes
                )

    return check


def weights_of(module: nn.Module) -> Check:
    """The check of a module's weights."""
    return record({name: like(value) for name, value in module.state_dict().items()})


def _unchanged(initial: Tensor, parameter: Tensor, value: Tensor) -> str:
    return equal_to(initial)(mine(value, parameter))


def _random() -> Check:
    def law(value: Tensor) -> str:
        try:
            torch.Generator().set_state(value)
        except (RuntimeError, TypeError) as error:
            return f"must be a random state; {str(error).splitlines()[0]}"
        return ""

    return tensor("uint8", str(len(torch.get_rng_state())), law=law)


def kept_by(step: int, stepper: torch.optim.Optimizer, stepped: Sequence[Tensor] = ()) -> Check:
    """The check of what an optimizer keeps after at most so many steps; takes one of zero gradients to see it."""
    for group in stepper.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    stepper.step()
    stepper.zero_grad(set_to_none=True)
    example = optimizer_state(stepper, stepped)
    groups = [
        record({key: number(low=0) if key == "lr" else exactly(value) for key, value in group.items()})
        for group in example["param_groups"]  # whose rate is set anew at every step
    ]
    held = {
        number: record({key: _kept(key, value, step) for key, value in kept.items()})
        for number, kept in example["state"].items()
    }
    return record({"state": record({}, held), "param_groups": sequence(groups)})


def _kept(key: str, value: Any, step: int) -> Check:
    """One thing that an optimizer keeps of a parameter, like what it keeps after a step."""
    if key == "step":
        return tensor("float32 float64", "", low=1, high=step) if isinstance(value, Tensor) else number(int, low=1)
    if isinstance(value, Tensor):
        return like(value, low=0 if key in SQUARES else None)
    return number() if isinstance(value, float) else exactly(value)
