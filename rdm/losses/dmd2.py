"""Distribution matching distillation with a network for the fake score."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.api import (
    Auxiliary,
    Conditions,
    Count,
    FlowGenerator,
    InputError,
    Keeps,
    Names,
    Passes,
    Positive,
    Setting,
    Share,
    Summed,
    accumulate,
    anything,
    copied,
    expect,
    losses,
    mapped,
    over,
    pieces,
    placed,
    record,
    weights_of,
)
from rdm.losses._flows import Dreamed, Row, held_by, noised, refuse_others, which_jump

LEAST_NORM = 1e-3  # of the normaliser
SPAN = 0.02, 0.98  # of times at which samples are judged


@losses.register("dmd2")
class DMD2(Dreamed):
    """Distribution matching: samples move along the difference of the fake and the real velocity at noised samples.

    x = G(z), x_t = (1 - t) x + t z', t uniform in [.02, .98]; p = x - (denoised mean) of the real and of the fake
    velocity; g = (p_real - p_fake) / mean |p_real| a row, and the loss is 1/2 mean (x - sg(x - g))^2. The fake velocity
    is that of a network which learns, by flow matching on the model's samples, `updates` steps for each of the model.

    Source: Yin et al. (2024), "Improved Distribution Matching Distillation for Fast Image Synthesis", sections 3 and
    4.2, without its adversarial loss; in velocities, where x - denoised = x - x_t + t v.

    Args:
        teacher: a flow whose `velocity` is the real one, guided as it is built; or "initial", the model as it starts.
        fake: the network that learns the fake velocity; None for a copy of the teacher, or of the model where the
            teacher has no parameters.
        batch: rows a step, over all ranks; of every update of the fake network as well.
        updates: of the fake network for each step of the model.
        optimizer, clip: of the fake network.
        average: decay of an average of its weights, by which samples are judged; None for the weights themselves.
        shard: names of its modules that ranks share out, as `shard` of the run says which of the model's
            ("blocks.*"; True for the layers in its lists). Teachers are whole on every rank.
        jumps: of the sampler that is trained, with equal times; at later ones it starts from noised samples of its own
            (backward simulation), the number drawn anew at each step and equal on all ranks.
        conditions: what the model is asked for; None for its own.
        chunk: rows in one forward pass; None for all of a rank's.

    Cost: one forward and backward and an evaluation of both velocities; `updates` forwards of the model, and forwards
    and backwards of the fake network. Memory: the fake network with gradient and optimizer.
    Raises: InputError: a model that is no flow; a teacher or fake network of states of another shape.
    """

    logged = "loss", "fake_loss"

    def __init__(
        self,
        teacher: FlowGenerator | Literal["initial"] = "initial",
        fake: FlowGenerator | None = None,
        batch: Count = 256,
        updates: Count = 5,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        clip: Positive | None = 10.0,
        jumps: Count = 1,
        conditions: Conditions | None = None,
        chunk: Count | None = None,
        average: Share | None = None,
        shard: Names = False,
    ):
        self.given, self.fake, self.batch, self.updates = teacher, fake, batch, updates
        self.optimizer, self.clip, self.jumps, self.conditions = optimizer, clip, jumps, conditions
        self.chunk, self.average, self.shard = chunk, average, shard

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Place the teacher; the fake network starts."""
        flow = refuse_others(self, model)
        super().prepare(model, setting, resumed=resumed)
        teacher = copied(flow) if isinstance(self.given, str) else self.given
        start = teacher if any(True for _ in teacher.parameters()) else flow
        fake = copied(start) if self.fake is None else self.fake
        for each in (teacher, fake):
            if tuple(each.shape) != tuple(flow.shape):
                raise InputError(f"dmd2: states of teacher and fake network are {each.shape}, the model's {flow.shape}")
        self.teacher: Any = placed(teacher, setting.device).eval().requires_grad_(False)
        fake.requires_grad_(True)
        self.beside = Auxiliary(
            fake, self.optimizer, self.clip, average=self.average, shard=self.shard, device=setting.device
        )

    def keeps(self) -> Iterator[Keeps]:
        """The teacher, and the fake network with its gradient and optimizer."""
        yield held_by("teacher", self.teacher)
        network, times = held_by("fake network", self.beside.network), 4 + (self.average is not None)
        yield network._replace(bytes=times * (network.bytes or 0), note=f"{network.note}, gradient, two of an Adam")

    def begin(self, model: Any, step: int) -> None:
        """The fake network learns."""
        for k in range(self.updates):
            self.fake_loss = self._updated(model, step, k)

    def _updated(self, model: Any, step: int, k: int) -> float:
        rows = self.draw(model, step, "fake", k)
        parts = pieces(len(rows.noise), self.chunk)

        def add(passes: Passes) -> float:
            learnt = accumulate(parts, lambda part: self._learnt(model, rows.part(part), step), 1 / self.batch, passes)
            return learnt["loss"] / self.batch

        return self.beside.update(add)

    def summed(self, model: Any, rows: Row, step: int) -> Summed:
        """Samples, and where they are pulled to."""
        x = self._sample(model, rows, step)
        pull = self._pull(x.detach(), rows)
        loss = 0.5 * (x - (x.detach() - pull)).float().square().flatten(1).mean(1).sum()
        return loss, {"fake_loss": self.fake_loss * len(x)}

    def _sample(self, model: Any, rows: Row, step: int) -> Tensor:
        """States at t = 0, by the last of a number of jumps; noised anew between them."""
        k = which_jump(self.jumps, self.setting.seed, step)
        x = rows.noise
        with torch.no_grad():
            for j in range(k):
                x = model.jump(x, 0.0, 1 - j / self.jumps, rows.condition)
                t = torch.full((len(x),), 1 - (j + 1) / self.jumps, dtype=x.dtype, device=x.device)
                x = noised(x, rows.again(1 + j), t)
        return model.jump(x, 0.0, 1 - k / self.jumps, rows.condition)

    def _learnt(self, model: Any, rows: Row, step: int) -> Summed:
        """Flow matching on samples."""
        with torch.no_grad():
            x = self._sample(model, rows, step)
        t, z = self._time(rows), rows.again(0)
        error = self.fake_network.velocity(noised(x, z, t), t, rows.condition) - (z - x)
        return error.float().square().flatten(1).mean(1).sum(), {}

    def _pull(self, x: Tensor, rows: Row) -> Tensor:
        with torch.no_grad(), self.beside.shown() as fake:
            t = self._time(rows)
            x_t = noised(x, rows.again(0), t)
            p_real, p_fake = (
                x - x_t + over(t, x) * net.velocity(x_t, t, rows.condition) for net in (self.teacher, fake)
            )
            size = p_real.abs().flatten(1).mean(1).clamp(min=LEAST_NORM)
            return (p_real - p_fake) / over(size, x)

    @property
    def fake_network(self) -> Any:
        """What learns the fake velocity."""
        return self.beside.network

    def _time(self, rows: Row) -> Tensor:
        return SPAN[0] + (SPAN[1] - SPAN[0]) * rows.uniform[:, 0]

    def state(self) -> dict[str, Any]:
        """The fake network and its optimizer; the teacher, where it was made from the model."""
        kept = {"teacher": self.teacher.state_dict()} if isinstance(self.given, str) else {}
        return {"fake": self.beside.state(), **kept}

    def restore(self, state: dict[str, Any]) -> None:
        """The fake network and its optimizer, and the teacher."""
        made = {"teacher": weights_of(self.teacher)} if isinstance(self.given, str) else {}
        expect(
            state,
            record({"fake": mapped(anything), **made}),
            "the state of dmd2 in the checkpoint",
            "delete it to go on from the one before",
        )
        self.beside.restore(state["fake"])
        if made:
            self.teacher.load_state_dict(state["teacher"])
