"""Distribution matching distillation of flow maps without a network for the fake score."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rdm.api import (
    Conditions,
    Count,
    FlowGenerator,
    Fraction,
    InputError,
    Keeps,
    Positive,
    Setting,
    Share,
    Summed,
    copied,
    expect,
    losses,
    over,
    placed,
    record,
    weights_of,
)
from rdm.losses._flows import Dreamed, Row, Velocity, arrival, held_by, noised, refuse_others, shifted, which_jump

LEAST = 1e-3  # of times, which velocities are divided by


class Places(NamedTuple):
    """Where a row is judged: on the way of its own jump from `start` at time s, at time t, with a step d <= s - t."""

    start: Tensor
    s: Tensor
    t: Tensor
    d: Tensor


class Target(NamedTuple):
    """States with gradient, and what they are to be, without: y + d (pseudo - real velocity)."""

    y: Tensor
    target: Tensor


def endpoint(jump: Callable[..., Tensor], real: Callable[..., Tensor], at: Places) -> Target:
    """The pseudo-velocity at the end of the jump, by an upwind difference: (X_{s->t+d} - X_{s->t}) / d.

    The real velocity by the midpoint rule from X_{s->t+d}, so that the target is a step of the teacher from there.
    """
    y = jump(at.start, at.t, at.s)
    with torch.no_grad():
        before, later = jump(at.start, at.t + at.d, at.s), at.t + at.d
        middle = before - over(at.d / 2, y) * real(before, later)
        return Target(y, before - over(at.d, y) * real(middle, at.t + at.d / 2))


def endpoint_jvp(velocity: Velocity, real: Callable[..., Tensor], at: Places) -> Target:
    """The pseudo-velocity at the end of the jump, exactly: u - (s - t) d_t u(x_s, t, s)."""
    y = at.start - over(at.s - at.t, at.start) * velocity(at.start, at.t, at.s)
    pseudo = arrival(velocity, at.start, at.t, at.s)
    with torch.no_grad():
        return Target(y, y + over(at.d, y) * (pseudo - real(y, at.t)))


def renoised(
    jump: Callable[..., Tensor], pseudo: Velocity, real: Callable[..., Tensor], at: Places, z: Tensor
) -> Target:
    """A surrogate at noised samples, of the sample itself: `pseudo`(x_t, 0, t) beside the real velocity there."""
    y = jump(at.start, torch.zeros_like(at.t), at.s)
    t = at.t.clamp(min=LEAST)
    with torch.no_grad():
        x = noised(y, z, t)
        return Target(y, y + over(at.d, y) * (pseudo(x, torch.zeros_like(t), t) - real(x, t)))


@losses.register("fsf_dmd")
class FSFDMD(Dreamed):
    """E |y - sg(y + d (v_pseudo - v_real))|^2 / 2d: the flow map's own velocity, where it arrives, beside a teacher's.

    y = X_{s->t}(x_s) is the state that the model's jump reaches, with gradient; v_pseudo is the velocity with which
    it arrives there, which for the flow map of its own samples is the velocity that a fake-score network would learn;
    v_real the teacher's. Nothing of the difference carries gradient, and y moves along +(v_pseudo - v_real).

    Source: a RECONSTRUCTION of "Distribution Matching Distillation without Fake Score Network" (2026, arXiv
    2605.19256) from its abstract and public descriptions; its literal equations, weights and schedules were not
    available. `pseudo` says which surrogate is taken:

    - "endpoint": (X_{s->t+d}(x_s) - X_{s->t}(x_s)) / d. The target is a midpoint step of the teacher from X_{s->t+d}.
    - "endpoint_jvp": its limit u - (s - t) d_t u(x_s, t, s), by forward-mode differentiation. Swings under momentum.
    - "diagonal": u(x_t, t, t) at samples noised anew. Vanishes or runs away unless the diagonal is trained too.
    - "chord": u(x_t, 0, t) there. Exact for straight ways alone.

    Args:
        teacher: a flow whose `velocity` is the real one, guided as it is built; "initial", the model as it starts; or
            "average", the model's own average over steps (a self-teacher: train its diagonal on data beside it, by
            `losses.mean_flow`).
        batch: rows a step, over all ranks.
        pseudo: the surrogate, see above.
        jumps: of the sampler that is trained, with equal times. The state that the k-th starts from is reached by the
            model's own jumps, without noise between, k drawn anew at each step and equal on all ranks.
        reach, least: largest and smallest step d of the difference; drawn uniformly. For networks that are no velocity
            below a time, such as pMF below .05, twice that is the smallest.
        at_end: share of the rows that are judged at the very end of the jump.
        shift: moves the times at which rows are judged towards noise (Esser et al. 2024); 1 is uniform.
        decay: of the average that is its own teacher.
        conditions: what the model is asked for; None for its own.
        chunk: rows in one forward pass; None for all of a rank's.

    Use Adam without momentum (beta1 = 0): the error is carried along the flow, and momentum makes it swing.
    Cost: one forward and backward, one forward of the model and two of the teacher.
    Raises: InputError: a model that is no flow map; a teacher of states of another shape.
    """

    def __init__(
        self,
        teacher: FlowGenerator | Literal["initial", "average"] = "initial",
        batch: Count = 256,
        pseudo: Literal["endpoint", "endpoint_jvp", "diagonal", "chord"] = "endpoint",
        jumps: Count = 1,
        reach: Positive = 0.5,
        least: Positive = 1e-3,
        at_end: Fraction = 0.25,
        shift: Positive = 1.0,
        decay: Share = 0.999,
        conditions: Conditions | None = None,
        chunk: Count | None = None,
    ):
        if not least <= reach <= 1:
            raise InputError(f"fsf_dmd: expected steps in time 0 < least <= reach <= 1; got {least} and {reach}")
        self.given, self.batch, self.pseudo, self.jumps = teacher, batch, pseudo, jumps
        self.least, self.reach, self.at_end, self.shift = least, reach, at_end, shift
        self.decay, self.conditions, self.chunk = decay, conditions, chunk

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """Unless the teacher follows the model, which a second time would not take back."""
        return self.given != "average"

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Copy or place the teacher."""
        flow = refuse_others(self, model, maps=True)
        super().prepare(model, setting, resumed=resumed)
        teacher = copied(flow) if isinstance(self.given, str) else self.given
        if tuple(teacher.shape) != tuple(flow.shape):
            raise InputError(f"fsf_dmd: the teacher's states are {teacher.shape}, the model's {flow.shape}")
        self.teacher: Any = placed(teacher, setting.device).eval().requires_grad_(False)

    def keeps(self) -> Iterator[Keeps]:
        """The teacher."""
        yield held_by("teacher", self.teacher)

    def begin(self, model: Any, step: int) -> None:
        """A teacher that is the average takes the weights as they are before this step."""
        if self.given == "average":
            self._follow(model)

    def summed(self, model: Any, rows: Row, step: int) -> Summed:
        """One jump of the sampler, judged on its way."""
        at, condition = self._places(model, rows, step), rows.condition
        y, target = self._judged(model, rows, at, condition)
        return ((y - target).float().square().flatten(1).mean(1) / (2 * at.d)).sum(), {}

    def _judged(self, model: Any, rows: Row, at: Places, condition: Any) -> Target:
        def velocity(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return model.average_velocity(x, r, t, condition)

        def jump(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return model.jump(x, r, t, condition)

        def real(x: Tensor, t: Tensor) -> Tensor:
            return self.teacher.velocity(x, t, condition)

        if self.pseudo == "endpoint":
            return endpoint(jump, real, at)
        if self.pseudo == "endpoint_jvp":
            return endpoint_jvp(velocity, real, at)
        surrogate = velocity if self.pseudo == "chord" else lambda x, _, t: velocity(x, t, t)
        return renoised(jump, surrogate, real, at, rows.again(0))

    def _places(self, model: Any, rows: Row, step: int) -> Places:
        """Backward simulation to the start of a jump, and times on its way."""
        k = which_jump(self.jumps, self.setting.seed, step)
        x, s, end = rows.noise, 1 - k / self.jumps, 1 - (k + 1) / self.jumps
        with torch.no_grad():
            for j in range(k):
                x = model.jump(x, 1 - (j + 1) / self.jumps, 1 - j / self.jumps, rows.condition)
        way, step_size, chance = rows.uniform.T
        t = end + (s - end) * shifted(0.02 + 0.96 * way, self.shift)
        t = torch.where(chance < self.at_end, torch.full_like(t, end), t)
        d = torch.minimum((self.reach * (1 - step_size)).clamp(min=self.least), s - t)
        return Places(x, torch.full_like(t, s), t, d)

    def _follow(self, model: nn.Module) -> None:
        with torch.no_grad():
            for mine, new in zip(self.teacher.parameters(), model.parameters(), strict=True):
                mine.lerp_(new.to(mine), 1 - self.decay)
            for mine, new in zip(self.teacher.buffers(), model.buffers(), strict=True):
                mine.copy_(new)

    def state(self) -> dict[str, Any]:
        """The teacher's weights, where it was made from the model."""
        return {"teacher": self.teacher.state_dict()} if isinstance(self.given, str) else {}

    def restore(self, state: dict[str, Any]) -> None:
        """The teacher's weights."""
        made = {"teacher": weights_of(self.teacher)} if isinstance(self.given, str) else {}
        expect(state, record(made), "the teacher in the checkpoint", "delete it to go on from the one before")
        if made:
            self.teacher.load_state_dict(state["teacher"])
