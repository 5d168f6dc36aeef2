"""The gradient of one step: of all losses, summed over ranks, its norm taken and clipped."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rdm.distributed import active, agree
from rdm.errors import NonFiniteError
from rdm.population.replay import random_state, restore_random_state
from rdm.scaling.arithmetic import Arithmetic
from rdm.scaling.norm import clipped
from rdm.scaling.sums import GradientSums
from rdm.scaling.weights import Weights
from rdm.timing.reads import pending, postponed, read, undone_by
from rdm.timing.regions import OTHER, region
from rdm.training.loss import Loss
from rdm.training.run import check_finite, joined


class Gradients:
    """Steps' gradients: those of all losses, added to what is stepped.

    On an accelerator a step's numbers are read once, at its end (`rdm.timing.reads`), where its losses may be taken
    again and there is one process: ranks tell each other of what they find.
    """

    def __init__(
        self,
        weights: Weights,
        losses: Sequence[Loss],
        *,
        sums: GradientSums,
        arithmetic: Arithmetic,
        clip: float | None,
        device: torch.device,
    ):
        self._weights, self._losses, self._sums = weights, losses, sums
        self._arithmetic, self._clip, self._device = arithmetic, clip, device
        self._repeatable = all(loss.repeatable for loss in losses) and not active()

    @region(OTHER)  # with which a step begins
    def __call__(self, step: int) -> dict[str, float]:
        """Add the gradient; returns what the losses log, and its norm before clipping.

        Raises:
            NonFiniteError: on every rank, where something is not finite on one.
            Overflow: the gradient, in float16, may be finite with the next loss scale.
        """
        scale = self._arithmetic.scale
        used = scale.logged
        (records, norm), _ = postponed(partial(self._taken, step), self._device, on=self._repeatable)
        for record in records:
            check_finite(record)
        scale.see(norm["gradient_norm"])
        check_finite({"the gradient": norm["gradient_norm"]})
        return {**joined(records), **norm, **used}

    def _taken(self, step: int) -> tuple[list[dict[str, float]], dict[str, float]]:
        """One step; its numbers are there when a block that postpones them has ended."""
        records, scale = list[dict[str, float]](), self._arithmetic.scale
        if pending():
            buffers = [each.clone() for each in self._weights.model.buffers()]
            undone_by(partial(self._undo, random_state(self._device), buffers))
        with self._sums.step():
            for loss in self._losses:
                self._sums.final, problem = loss is self._losses[-1], None
                try:
                    with self._arithmetic():
                        found = loss.backward(self._weights.model, step, scale.value)
                    records.append(read(found))
                    if not pending():
                        check_finite(records[-1])
                except NonFiniteError as error:
                    problem = error
                agree(problem)
        scale.divide(self._weights.stepped)
        return records, read({"gradient_norm": clipped(self._weights.stepped, self._clip)})

    @torch.no_grad()
    def _undo(self, random: list[Tensor], buffers: list[Tensor]) -> None:
        """Gradients, random states and buffers as before the step."""
        for buffer, before in zip(self._weights.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for each in (*self._weights.stepped, *self._weights.model.parameters()):
            each.grad = None
        restore_random_state(self._device, random)
