"""MeanFlow: flow maps learned from data by the identity that their average velocities fulfil."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.api import Conditions, Count, Fraction, InputError, Nonnegative, Positive, Rows, Setting, Summed, losses, over
from rdm.losses._flows import Noised, along, noised, normal_rows, refuse_others


@losses.register("mean_flow")
class MeanFlow(Noised):
    """Squared residual of the MeanFlow identity v = u + (t - r) du/dt, on data.

    With v_g the conditional velocity z - x_0 (guided, see below), u = u(x_t, r, t) and V = u + (t - r) sg(du/dt),
    du/dt = d_t u + (J_x u) w along the tangent w, the loss of a row is |V - sg(v_g)|^2 / sg(|V - v_g|^2 + eps)^power.
    tangent = "conditional", w = v_g, is MeanFlow: Geng et al. (2025a), "Mean Flows for One-step Generative Modeling",
    equations 10, 11 and 22. tangent = "predicted", w = sg u(x_t, t, t), is improved MeanFlow: Geng et al. (2025b),
    "Improved Mean Flows", of which the auxiliary velocity head is left out: u over no time is the velocity.

    Args:
        batch: real items a step, over all ranks.
        equal: share of the rows with r = t, which learn the velocity: .75 of MeanFlow, .5 of improved MeanFlow.
        mean, deviation: of the logit-normal law of the two times, the earlier of which is r.
        power, eps: of the adaptive weight; power 0 is the plain squared error. Squares are summed over a row.
        guidance: omega >= 1; the target is v + (1 - 1/omega)(v_c - v_0) with the model's own velocities with the
            condition and without (improved MeanFlow's rule); 1 is none. It needs a model that knows no class.
        drop: share of the rows whose condition is left out.
        derivative: "jvp", forward-mode differentiation, exact; or "difference", two more evaluations, where the
            network's attention knows no forward mode.
        conditions: as of flow matching.
        chunk: items in one forward pass; None for all of a rank's.

    Cost: one forward and backward, and one forward of twice the cost for the derivative.
    Raises: InputError: a model that is no flow map; guidance or drop with one that has no label for no class.
    """

    logged = "loss", "error"

    def __init__(
        self,
        batch: Count = 256,
        tangent: Literal["conditional", "predicted"] = "conditional",
        equal: Fraction = 0.75,
        mean: float = -0.4,
        deviation: Positive = 1.0,
        power: Nonnegative = 1.0,
        eps: Positive = 0.01,
        guidance: Positive = 1.0,
        drop: Fraction = 0.0,
        derivative: Literal["jvp", "difference"] = "jvp",
        conditions: Conditions | None = None,
        chunk: Count | None = None,
    ):
        if guidance < 1:
            raise InputError(f"mean_flow: guidance is a scale from 1 (none); got {guidance}")
        self.batch, self.conditions, self.chunk = batch, conditions, chunk
        self.tangent, self.equal, self.mean, self.deviation = tangent, equal, mean, deviation
        self.power, self.eps, self.guidance, self.drop, self.exact = power, eps, guidance, drop, derivative == "jvp"

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Open the data; the model must be a flow map."""
        flow = refuse_others(self, model, maps=True)
        if (self.guidance > 1 or self.drop) and flow.null is None:
            raise InputError(
                f"mean_flow: guidance and drop need a model with a label for no class; {type(flow).__name__} has none; "
                "leave them at 1 and 0"
            )
        super().prepare(model, setting, resumed=resumed)

    def summed(self, model: Any, rows: Rows, streams: Sequence[torch.Generator]) -> Summed:
        """Real items, noised at the later of two times."""
        x0 = model.encode(rows.items)
        z = normal_rows(x0, streams, model.noise_scale)
        r, t, kept = self._times(x0, streams)
        x, velocity = noised(x0, z, t), z - x0
        condition = self._dropped(model, self.condition(model, rows), kept)
        with torch.no_grad():
            own = model.velocity(x, t, condition) if self.tangent == "predicted" or self.guidance > 1 else velocity
            target = self._guided(model, x, t, own, velocity, kept)
        tangent = own if self.tangent == "predicted" else target
        u, slope = along(
            lambda x, r, t: model.average_velocity(x, r, t, condition), x, r, t, tangent.to(x), exact=self.exact
        )
        error = (u + over(t - r, x) * slope - target).square().flatten(1).sum(1)
        loss = (error / (error.detach() + self.eps) ** self.power).sum()
        return loss, {"error": error.detach().sum().double()}

    def _times(self, x0: Tensor, streams: Sequence[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
        """R <= t, and whether a row keeps its condition."""
        normal, chance = x0.new_empty(2, len(x0), 2)
        for k, source in enumerate(streams):
            normal[k].normal_(self.mean, self.deviation, generator=source)
            chance[k].uniform_(generator=source)
        r, t = normal.sigmoid().sort(1).values.unbind(1)
        return torch.where(chance[:, 0] < self.equal, t, r), t, chance[:, 1] >= self.drop

    def _dropped(self, model: Any, condition: Any, kept: Tensor) -> Any:
        return torch.where(kept, condition, model.null) if self.drop else condition

    def _guided(self, model: Any, x: Tensor, t: Tensor, own: Tensor, velocity: Tensor, kept: Tensor) -> Tensor:
        if self.guidance == 1:
            return velocity
        away = own - model.velocity(x, t, torch.full_like(t, model.null, dtype=torch.long))
        return velocity + over((1 - 1 / self.guidance) * kept.to(t), x) * away
