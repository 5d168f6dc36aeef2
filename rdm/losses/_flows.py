"""What losses of flows share: times, noised states, derivatives along the flow, and rows that are drawn, not read."""

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rdm.api import (
    Condition,
    Conditions,
    Does,
    Fed,
    FlowGenerator,
    InputError,
    Keeps,
    Logged,
    Loss,
    Rows,
    Setting,
    Summed,
    accumulate,
    drawn,
    first_line,
    moved,
    over,
    pieces,
    portion,
    rank,
    rows_of,
    stream,
    total,
    tried,
    world_size,
)

STEP = 5e-3  # of finite differences in time: their error is of second order, float32's rounding one part in 1e5

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # u(x, r, t)


def refuse_others(user: object, model: nn.Module, *, maps: bool = False) -> FlowGenerator:
    """The model, which must be a flow; a flow map where `maps`.

    Raises:
        InputError: it is not.
    """
    name = type(user).__name__
    if not isinstance(model, FlowGenerator):
        raise InputError(f"{name} trains a rdm.generators.protocol.FlowGenerator; got {type(model).__name__}")
    if maps and not model.is_map:
        raise InputError(
            f"{name} trains a flow map, whose network is told both ends of a jump; got the velocity network "
            f"{type(model).__name__}; give it map=True, which starts as the velocity that its weights are of"
        )
    return model


def shifted(q: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved towards noise: shift q / (1 + (shift - 1) q), Esser et al. (2024), equation 23."""
    return shift * q / (1 + (shift - 1) * q)


@contextmanager
def forward_mode() -> Iterator[None]:
    """Attention by plain products, which alone know forward-mode differentiation."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        raise InputError(
            f"a layer knows no forward-mode differentiation ({first_line(error)}); "
            "take derivative='difference' of mean_flow, pseudo='endpoint' of fsf_dmd"
        ) from error


def along(
    velocity: Velocity, x: Tensor, r: Tensor, t: Tensor, tangent: Tensor, *, exact: bool
) -> tuple[Tensor, Tensor]:
    """The velocity u and du/dt = d_t u + (J_x u) tangent at fixed r, the second without gradient.

    Exact by forward-mode differentiation, or by a central difference over STEP, of second order. That one evaluates the
    network a little outside r <= t <= 1 as well, where forward mode differentiates it too.
    """
    with torch.no_grad():
        if exact:
            with forward_mode():
                ends = torch.zeros_like(r), torch.ones_like(t)
                slope = torch.func.jvp(velocity, (x, r.clone(), t.clone()), (tangent, *ends))[1]
        else:
            ahead, behind = (velocity(x + d * tangent, r, t + d) for d in (STEP, -STEP))
            slope = (ahead - behind) / (2 * STEP)
    return velocity(x, r, t), slope


def arrival(velocity: Velocity, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """The exact velocity at the end of the jump from t to r: u - (t - r) d_r u (the Lagrangian identity)."""
    with torch.no_grad(), forward_mode():
        found = torch.func.jvp(lambda r: velocity(x, r, t), (r.clone(),), (torch.ones_like(r),))
    return found[0] - over(t - r, x) * found[1]


class Noised(Fed):
    """A loss of real items that are noised, for flows; `conditions` read what the model is given for their labels."""

    conditions: Conditions | None

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Open the data; the model must be a flow."""
        flow = refuse_others(self, model)
        super().prepare(model, setting, resumed=resumed)
        if self.conditions is not None:
            tried(flow, self.conditions.fitted(setting.items(self).labels))

    def condition(self, model: FlowGenerator, rows: Rows) -> Any:
        """What the model is given for the rows' labels."""
        if self.conditions is None:
            return None if model.classes is None else self.labels(rows, model.classes)
        count = self.conditions.count
        labels = rows.labels if count is None else self.labels(rows, count)
        return moved(self.conditions.read(labels), rows.items.device)


class Row(NamedTuple):
    """This rank's rows of what a step draws."""

    noise: Tensor  # of the model's scale
    condition: Condition | None
    uniform: Tensor  # "n 3" in [0, 1)
    again: Callable[[int], Tensor]  # other noise for the rows, by number

    def part(self, which: slice) -> "Row":
        """Some of them."""
        condition = rows_of(self.condition, which)
        return Row(self.noise[which], condition, self.uniform[which], lambda k: self.again(k)[which])


def held_by(name: str, module: nn.Module) -> Keeps:
    """The weights of a network beside the model."""
    tensors = (*module.parameters(), *module.buffers())
    return Keeps(name, sum(t.nbytes for t in tensors), f"{sum(t.numel() for t in tensors):,} numbers")


class Dreamed(Loss):
    """A loss of what the model itself generates: `batch` rows of noise and conditions a step over all ranks.

    At most `chunk` of them go through the networks at once; None for all of a rank's.
    """

    batch: int
    chunk: int | None
    conditions: Conditions | None
    logged: Sequence[str] = ("loss",)

    @property
    def size(self) -> int:  # type: ignore[override]
        """The batch."""
        return self.batch

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Conditions of the model's own where none are given."""
        self.setting, flow = setting, refuse_others(self, model)
        if self.batch < world_size():
            raise InputError(f"a batch of {self.batch} leaves ranks without rows; there are {world_size()}")
        self.conditions = flow.conditions if self.conditions is None else self.conditions.fitted(None)

    def rehearse(self, model: nn.Module, setting: Setting, ranks: int) -> Iterator[Keeps | Does]:
        """A copy, prepared as it is; then the first rows of one rank, as often as it has such."""
        parts, one = pieces(len(portion(self.batch, 0, ranks)), self.chunk), copy.copy(self)
        one.batch = parts[0].rows.stop
        one.prepare(model, setting, resumed=False)
        one.begin(model, 0)  # after which all is there that it keeps
        yield from one.keeps()
        one.backward(model, 1)
        yield Does(f"{type(self).__name__}, all of it", len(parts))

    def keeps(self) -> Iterator[Keeps]:
        """What it holds from step to step beside the model; nothing by default."""
        yield from ()

    def backward(self, model: nn.Module, step: int, scale: float = 1.0) -> Logged:
        """One batch."""
        self.begin(model, step)
        rows = self.draw(model, step)
        parts, factor = pieces(len(rows.noise), self.chunk), scale / self.batch
        sums = accumulate(parts, lambda part: self.summed(model, rows.part(part), step), factor, self.setting.passes)
        return {name: total(sums.get(name, 0.0)) / self.batch for name in self.logged}

    def begin(self, model: Any, step: int) -> None:  # noqa: B027  (most have nothing to do)
        """What comes before a step's rows."""

    @abstractmethod
    def summed(self, model: Any, rows: Row, step: int) -> Summed:
        """The loss summed over the rows, with its graph, and other sums over them, by what is logged."""

    def draw(self, model: Any, step: int, *purpose: int | str) -> Row:
        """Rows that are functions of seed, step and purpose, however they are shared out."""
        seed, device, name = self.setting.seed, self.setting.device, type(self).__name__
        numbers = portion(self.batch, rank(), world_size())
        mine = slice(numbers.start, numbers.stop)

        def noise_of(which: int) -> tuple[Tensor, Condition | None]:
            source = functools.partial(stream, seed, name, *purpose, step, which, device=device)
            noise, condition = drawn(model, self.conditions, self.batch, mine, source)
            return model.noise_scale * noise, condition

        noise, condition = noise_of(0)
        uniform = torch.rand(self.batch, 3, generator=stream(seed, name, "times", *purpose, step), dtype=torch.float64)
        return Row(noise, condition, uniform[mine].to(noise, non_blocking=True), lambda which: noise_of(which + 1)[0])


def which_jump(jumps: int, seed: int, step: int) -> int:
    """The jump of a sampler that a step trains, equal on all ranks; the last, before which most is done, in a plan."""
    return min(int(torch.randint(jumps, (), generator=stream(seed, "jump", step))), jumps - 1)


def noised(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t z."""
    return (1 - over(t, x0)) * x0 + over(t, x0) * noise


def normal_rows(like: Tensor, streams: Sequence[torch.Generator], scale: float) -> Tensor:
    """Gaussian noise, each row from its own stream."""
    z = torch.empty_like(like)
    for k, source in enumerate(streams):
        z[k].normal_(0, scale, generator=source)
    return z
