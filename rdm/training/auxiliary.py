"""A network that a loss trains beside the model, such as one that learns what the model's samples are like."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from rdm.distributed import total
from rdm.errors import InputError, NonFiniteError
from rdm.files.schema import anything, expect, number, record
from rdm.numbers import Share
from rdm.scaling.averages import Average, Averages, as_averages
from rdm.scaling.norm import clipped
from rdm.scaling.sharding import Names, sharded
from rdm.scaling.stepped import load_optimizer, optimizer_state, parts
from rdm.scaling.sums import GradientSums, Passes
from rdm.scaling.weights import Weights
from rdm.training.resumed import kept_by

CPU = torch.device("cpu")


class Auxiliary:
    """A network with an optimizer of its own, in the checkpoint of the loss that holds it.

    Like the model it is trained on every rank, its gradient summed over them; it may be averaged and shared out too.

    Args:
        network: trained in place.
        optimizer: makes one of the parameters.
        clip: largest norm of the gradient.
        average: of its weights, which `shown` puts into it; None for the weights themselves.
        shard: names of its modules that ranks share out (`rdm.scaling.sharding`).
        device: where it computes.

    Raises:
        InputError: names that it has not; an average that counts items; autocast in float16, which needs a loss scale.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        clip: float | None = None,
        *,
        average: Share | Average | None = None,
        shard: Names = False,
        device: torch.device = CPU,
    ):
        if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
            name = type(network).__name__
            raise InputError(f"{name}, trained beside the model, has no loss scale for float16; give bfloat16")
        self.network, self.clip, self.updates = sharded(network.train(), shard, device), clip, 0
        self.weights = Weights(self.network)
        self.optimizer, self.sums = optimizer(self.weights.groups), GradientSums(self.network)
        self.averages = Averages(as_averages(average), self.weights)

    def update(self, add_gradient: Callable[[Passes], float]) -> float:
        """One step: `add_gradient` adds this rank's share and returns its share of the loss; returns the whole loss.

        It enters the `Passes` that it is given for each of its backward passes.

        Raises:
            NonFiniteError: the loss or the gradient is not finite on some rank; no step is taken.
        """
        self.optimizer.zero_grad(set_to_none=True)
        with self.sums.step():
            self.sums.final = True
            share = add_gradient(self.sums.passes)
        loss, norm = total(float(share)), float(clipped(self.weights.stepped, self.clip))
        if not max(abs(loss), norm) < float("inf"):
            raise NonFiniteError(
                f"the gradient of {type(self.network).__name__}, trained beside the model, is not finite"
            )
        self.optimizer.step()
        self.averages.update()
        self.updates += 1
        return loss

    def shown(self) -> AbstractContextManager[Any]:
        """The network with its average's weights, where it has one, for the length of a block."""
        return self.averages.shown()

    def state(self) -> dict[str, Any]:
        """Weights and their average, optimizer and number of updates."""
        return {
            "network": self.weights.parts(self.weights.state()),
            **self.averages.state(),
            "optimizer": parts(optimizer_state(self.optimizer, self.weights.stepped)),
            "updates": self.updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave, on any number of ranks.

        Raises:
            CorruptFileError: it is that of another network or optimizer.
        """
        where, remedy = "the network beside the model in the checkpoint", "delete it to go on from the one before"
        updates = state.get("updates", 0) if isinstance(state, dict) else 0
        known = isinstance(updates, int) and updates > 0
        empty = record({"state": record({}), "param_groups": anything})
        network = self.weights.check(self.weights.state())
        checks = {"network": network, **self.averages.check(updates if known else 0), "updates": number(int, low=0)}
        held = kept_by(updates, self.optimizer, self.weights.stepped) if known else empty
        expect(state, record({**checks, "optimizer": held}), where, remedy)
        self.weights.load(self.weights.mine(state["network"]))
        self.averages.restore(state)
        load_optimizer(self.optimizer, self.weights.stepped, state["optimizer"])
        self.updates = state["updates"]
