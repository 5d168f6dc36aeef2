"""Weights: what the optimizer steps, which is the model's parameters or float32 masters of what it holds in fewer bits.

Source of the masters: Micikevicius et al. (2018), "Mixed Precision Training", section 3.1: updates that are small
beside a weight are lost in its few bits, and are kept where they are added up in float32.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.files.schema import Check, like, record
from rdm.files.store import Part
from rdm.scaling.sharding import is_split, local, mine

Held = Literal["float32", "bfloat16"]


class Weights:
    """The weights of a model as the optimizer sees them.

    With `held` "bfloat16", parameters that are trained are held in it, and each has a master in float32: gradients are
    handed over to the master after every backward pass, and so are summed over chunks in float32; the optimizer steps
    the masters, and `publish` rounds them into the model, before the first step too. Cost: 4 bytes a parameter for the
    masters, 2 for the model.

    Where modules are sharded, `state` and what is made of it hold this rank's rows of their parameters, which have no
    masters: they are stepped in the type that they were made in.

    Args:
        model: changed in place.
        held: "float32" leaves the parameters as they are, of whatever type.
    """

    def __init__(self, model: nn.Module, held: Held = "float32"):
        self.model = model
        every = list(model.named_parameters(remove_duplicate=False))
        state = model.state_dict()
        self.averaged = [name for name, p in every if p.is_floating_point() and name in state]
        trained = [p for p in model.parameters() if p.requires_grad]
        self.split = {name: tensor for name, tensor in state.items() if is_split(tensor)}
        low = [p for p in trained if held != "float32" and p.is_floating_point() and not is_split(p)]
        self._masters = {p: nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in low}
        self._names = {name: self._masters[p] for name, p in every if p in self._masters}
        self.stepped = [self._masters.get(p, p) for p in trained]  # what the optimizer is made of
        named = dict(every)
        self._averaged = [self._masters.get(named[name], named[name]) for name in self.averaged]
        self._hooks = [p.register_post_accumulate_grad_hook(partial(_hand_over, m)) for p, m in self._masters.items()]
        self._held = getattr(torch, held)

    def named(self) -> dict[str, nn.Parameter]:
        """What the optimizer steps, by the model's names."""
        return {name: self._masters.get(p, p) for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def groups(self) -> list[Any]:
        """What is stepped, as optimizers take it, which cannot mix tensors that are split over ranks with others."""
        kinds = [[p for p in self.stepped if is_split(p) == split] for split in (False, True)]
        return [{"params": each} for each in kinds] if all(kinds) else list(self.stepped)

    def state(self) -> dict[str, Tensor]:
        """The model's state, with masters in the place of what is rounded."""
        state = {name: local(tensor) for name, tensor in self.model.state_dict().items()}
        return {name: self._names[name].detach() if name in self._names else value for name, value in state.items()}

    def taken(self) -> list[Tensor]:
        """Those of `averaged` in the state, without reading all of it."""
        return [local(p.detach()) for p in self._averaged]

    @torch.no_grad()
    def show(self, state: Mapping[str, Tensor]) -> None:
        """Put a state, or one like it, into the model alone, rounded to the model's types."""
        for name, held in self.model.state_dict().items():
            local(held).copy_(state[name])

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.show(state)
        for name, master in self._names.items():
            master.copy_(state[name])

    def parts(self, state: Mapping[str, Tensor]) -> dict[str, Tensor | Part]:
        """A state as it is written: what ranks hold rows of by parts."""
        return {name: Part(value) if name in self.split else value for name, value in state.items()}

    def mine(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank holds of a state that was read."""
        return {name: mine(value, self.split[name]) if name in self.split else value for name, value in whole.items()}

    def check(self, state: Mapping[str, Tensor]) -> Check:
        """A whole state like this rank's."""
        shapes = {name: self.split.get(name, value).shape for name, value in state.items()}
        return record({name: like(value.new_empty(shapes[name], device="meta")) for name, value in state.items()})

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for parameter, master in self._masters.items():
            if parameter.dtype == self._held:
                parameter.copy_(master)
            else:
                parameter.data = master.to(self._held)

    def close(self) -> None:
        """Leave the model with the masters as its parameters."""
        for hook in self._hooks:
            hook.remove()
        for parameter, master in self._masters.items():
            parameter.grad, parameter.data = None, master.data
        self._hooks, self._masters, self._names = [], {}, {}


def _hand_over(master: nn.Parameter, parameter: Tensor) -> None:
    """Add a parameter's gradient to its master's."""
    assert parameter.grad is not None
    found = parameter.grad.to(master.dtype)
    master.grad = found if master.grad is None else master.grad.add_(found)
    parameter.grad = None
