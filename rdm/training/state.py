"""What training changes, and all that a step depends on: written to checkpoints and taken back from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rdm.distributed import gather, rank, together
from rdm.errors import CorruptFileError, MismatchError, NonFiniteError
from rdm.files.schema import expect
from rdm.randomness import stream
from rdm.scaling.averages import Averages
from rdm.scaling.loss_scale import LossScale
from rdm.scaling.stepped import load_optimizer, optimizer_state, parts
from rdm.scaling.weights import Weights
from rdm.timing.regions import region
from rdm.training.loss import Loss
from rdm.training.resumed import state_of
from rdm.training.run import Skips, check_finite


@dataclass
class Trained:
    """A run in memory; the position in the data follows from seed and step.

    Args:
        weights, optimizer, averages, losses: what is trained, by what, moving averages of it, and on what.
        skips: steps that were not taken.
        scale: of the loss.
        seed: of random states of ranks that a checkpoint has none of.
        seconds: spent before this process.
    """

    weights: Weights
    optimizer: torch.optim.Optimizer
    averages: Averages
    losses: Sequence[Loss]
    skips: Skips
    scale: LossScale
    seed: int
    seconds: float = 0.0

    @region("optimizer")
    def step(self) -> None:
        """Update weights, what the model holds of them, and their averages."""
        self.optimizer.step()
        self.weights.publish()
        self.averages.update()

    def finish(self) -> nn.Module:
        """The model for good with the weights that are kept, the first average where there is one; in float32."""
        kept = self.averages.first
        self.weights.close()
        self.weights.show(kept)
        return self.weights.model.eval()

    @property
    def _device(self) -> torch.device:
        return next(self.weights.model.parameters()).device

    @region("checkpoints")
    def state(self, step: int, seconds: float) -> dict[str, Any]:
        """Everything that the next step depends on, after so many steps and seconds of the run.

        Raises:
            Diverged: the last update destroyed the weights.
        """
        try:
            with together():
                check_finite({}, {f"after the update, {name}": value for name, value in self.weights.state().items()})
        except NonFiniteError as error:
            self.skips.fail(step, error)
        cuda = gather(torch.cuda.get_rng_state(self._device)) if self._device.type == "cuda" else None
        return {
            "model": self.weights.parts(self.weights.state()),
            **self.averages.state(),
            "optimizer": parts(optimizer_state(self.optimizer, self.weights.stepped)),
            "losses": [loss.state() for loss in self.losses],
            "random": {"cpu": gather(torch.get_rng_state()), "cuda": cuda},
            "skips": [self.skips.total, self.skips.row],
            **self.scale.state(),
            "seconds": seconds,
        }

    @together()
    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CorruptFileError: an entry is not one of this run at this step.
        """
        device, name = self._device, f"checkpoint {step:08d}"
        check = state_of(step, self.weights, self.averages, self.optimizer, len(self.losses))
        expect(state, check, name, "delete it to go on from the one before")
        self.weights.load(self.weights.mine(state["model"]))
        self.averages.restore(state)
        load_optimizer(self.optimizer, self.weights.stepped, state["optimizer"])
        for loss, inner in zip(self.losses, state["losses"], strict=True):
            try:
                loss.restore(_moved(inner, device))
            except (CorruptFileError, MismatchError) as error:
                raise type(error)(f"{name}: {error}") from error
        _put(state["random"]["cpu"], torch.set_rng_state, stream(self.seed, "resumed", step, rank()))
        if device.type == "cuda":
            source = stream(self.seed, "resumed", step, rank(), device=device)
            _put(state["random"]["cuda"] or [], partial(torch.cuda.set_rng_state, device=device), source)
        self.skips.total, self.skips.row = state["skips"]
        self.scale.restore(state)
        self.seconds = state["seconds"]


def _put(states: Sequence[Tensor], put: Callable[[Tensor], object], source: torch.Generator) -> None:
    """This rank's random state of those that were written, or that of a source where it has none."""
    put(states[rank()] if rank() < len(states) else source.get_state())


def _moved(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _moved(value, device) for key, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree
