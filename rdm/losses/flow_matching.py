"""Flow matching."""

from collections.abc import Sequence
from typing import Any

import torch

from rdm.api import Conditions, Count, Rows, Summed, losses
from rdm.losses._flows import Noised, noised, normal_rows


@losses.register("flow_matching")
class FlowMatching(Noised):
    """Mean squared error of the velocity, E |v(x_t, t) - (z - x_0)|^2, with t uniform and z of the model's noise scale.

    Source: Lipman et al. (2023), "Flow Matching for Generative Modeling", equation 23, with time reversed: t = 1 is
    noise. Cost: one forward and backward of `batch` images, `chunk` at a time. With `conditions`, the model is given
    what these read for the items' own conditions, such as contexts for the numbers of captions.
    """

    def __init__(self, batch: Count = 256, conditions: Conditions | None = None, chunk: Count | None = None):
        self.batch, self.conditions, self.chunk = batch, conditions, chunk

    def summed(self, model: Any, rows: Rows, streams: Sequence[torch.Generator]) -> Summed:
        """Real images, noised."""
        x0 = model.encode(rows.items)
        z, t = normal_rows(x0, streams, model.noise_scale), x0.new_empty(len(x0))
        for k, source in enumerate(streams):
            t[k].uniform_(generator=source)
        error = model.velocity(noised(x0, z, t), t, self.condition(model, rows)) - (z - x0)
        return error.square().flatten(1).mean(1).sum(), {}
