"""A network that a loss trains beside the model, such as one that learns what the model's samples are like."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rdm.distributed import sum_gradients, total
from rdm.errors import NonFiniteError
from rdm.files.schema import anything, expect, number, record
from rdm.training.resumed import kept_by, weights_of


class Auxiliary:
    """A network with an optimizer of its own, in the checkpoint of the loss that holds it.

    Args:
        network: trained in place, on every rank.
        optimizer: makes one of the parameters.
        clip: largest norm of the gradient.
    """

    def __init__(self, network: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], clip: float | None = None):
        self.network, self.clip = network.train(), clip
        self.optimizer = optimizer([p for p in network.parameters() if p.requires_grad])
        self.updates = 0

    def update(self, add_gradient: Callable[[], float]) -> float:
        """One step: `add_gradient` adds this rank's share and returns its share of the loss; returns the whole loss.

        Raises:
            NonFiniteError: the loss or the gradient is not finite on some rank; no step is taken.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = total(add_gradient())
        sum_gradients(self.network.parameters())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip or float("inf"))
        if not bool(torch.isfinite(norm)) or not abs(loss) < float("inf"):
            raise NonFiniteError(
                f"the gradient of {type(self.network).__name__}, trained beside the model, is not finite"
            )
        self.optimizer.step()
        self.updates += 1
        return loss

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and number of updates."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CorruptFileError: it is that of another network or optimizer.
        """
        where, remedy = "the network beside the model in the checkpoint", "delete it to go on from the one before"
        checks = {"network": weights_of(self.network), "updates": number(int, low=0)}
        updates = state.get("updates", 0) if isinstance(state, dict) else 0
        known = isinstance(updates, int) and updates > 0
        held = kept_by(updates, self.optimizer) if known else record({"state": record({}), "param_groups": anything})
        expect(state, record({**checks, "optimizer": held}), where, remedy)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
