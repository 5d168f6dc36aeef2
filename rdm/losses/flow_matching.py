"""Flow matching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rdm.api import Conditions, Count, Fed, FlowGenerator, InputError, Rows, Setting, losses, moved, tried


@losses.register("flow_matching")
class FlowMatching(Fed):
    """Mean squared error of the velocity, E |v(x_t, t) - (z - x_0)|^2, with t uniform and z of the model's noise scale.

    Source: Lipman et al. (2023), "Flow Matching for Generative Modeling", equation 23, with time reversed: t = 1 is
    noise. Cost: one forward and backward of `batch` images. With `conditions`, the model is given what these read for
    the items' own conditions, such as contexts for the numbers of captions.
    """

    def __init__(self, batch: Count = 256, conditions: Conditions | None = None):
        self.batch, self.conditions = batch, conditions

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Open the data; the model must be a flow."""
        if not isinstance(model, FlowGenerator):
            raise InputError(f"FlowMatching trains a rdm.generators.protocol.FlowGenerator; got {type(model).__name__}")
        super().prepare(model, setting, resumed=resumed)
        if self.conditions is not None:
            tried(model, self.conditions.fitted(setting.items(self).labels))

    def add(self, model: nn.Module, rows: Rows, streams: Sequence[torch.Generator]) -> dict[str, float]:
        """Real images, noised."""
        assert isinstance(model, FlowGenerator)
        x0 = model.encode(rows.items)
        z, t = torch.empty_like(x0), torch.empty(len(x0)).to(x0)
        for k, source in enumerate(streams):
            z[k].normal_(0, model.noise_scale, generator=source)
            t[k].uniform_(generator=source)
        tt = t.view(-1, *[1] * (x0.ndim - 1))
        error = model.velocity((1 - tt) * x0 + tt * z, t, self._condition(model, rows)) - (z - x0)
        loss = error.square().flatten(1).mean(1).sum()
        with self.setting.passes(last=True):
            (loss / self.batch).backward()
        return {"loss": float(loss.detach())}

    def _condition(self, model: FlowGenerator, rows: Rows) -> Any:
        """What the model is given for the rows' labels."""
        if self.conditions is None:
            return None if model.classes is None else self.labels(rows, model.classes)
        count = self.conditions.count
        labels = rows.labels if count is None else self.labels(rows, count)
        return moved(self.conditions.read(labels), rows.items.device)
