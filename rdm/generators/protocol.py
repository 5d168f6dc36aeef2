"""The interface of a generator; flow models and flow maps read as generators.

t = 0 is data and t = 1 is noise everywhere: x_t = (1 - t) x_0 + t z, with velocity v = dx/dt = z - x_0. The average
velocity u(x, r, t) over r..t jumps from x_t to x_r = x_t - (t - r) u; u(x, t, t) = v(x, t).
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from rdm.errors import InputError

Solver = Literal["euler", "heun"]


class Generator(nn.Module, ABC):
    """images = generator(noise, condition): deterministic, one item a row of noise; pictures "n c h w" in [0, 1].

    Any callable of the same form works with `rdm.Population`; this class adds what the trainer needs to draw inputs.
    """

    shape: tuple[int, ...]  # of one item's noise
    classes: int | None  # class labels are the condition; None for none

    @abstractmethod
    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Generate items."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Standard normal noise and uniform class labels, on the generator's device."""
        noise = torch.randn(n, *self.shape, generator=generator, device=generator.device)
        if self.classes is None:
            return noise, None
        return noise, torch.randint(self.classes, (n,), generator=generator, device=generator.device)


class FlowGenerator(Generator):
    """A velocity field integrated from noise to data; one step is a one-step generator.

    Euler: x <- x - h v(x, t); Heun: the average of the velocities at both ends of the step (two evaluations), but for
    the last, which is Euler's: the order stays, and many networks are no velocity at t = 0.

    Noise given to `forward` is standard normal; states are `noise_scale` times as large. `clamp` clamps pictures to
    [0, 1] in training too (evaluation always does): a distance that sees values outside matches moments that the
    pictures do not have (digits, sliced Wasserstein ratio on pixels after the same training: 1.27 with the clamp, 2.31
    without).
    """

    noise_scale: float = 1.0
    clamp: bool = True

    def __init__(self, steps: int, solver: Solver = "euler"):
        super().__init__()
        if steps < 1 or solver not in ("euler", "heun"):
            raise InputError(f'expected steps >= 1 and solver "euler" or "heun"; got {steps} and {solver!r}')
        self.steps, self.solver = steps, solver

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """v: dx/dt at states x (n ...), times t (n), in the model's own scale (images mapped to [-1, 1])."""

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """u: the mean velocity from t down to r (each n); of a velocity field by one step of the solver."""
        slope = self.velocity(x, t, condition)
        if self.solver == "euler" or not (r.is_meta or bool(r.any())):
            return slope
        return (slope + self.velocity(x - over(t - r, x) * slope, r, condition)) / 2

    def jump(self, x: Tensor, r: Tensor | float, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """From states at times t to those at times r (numbers, or n each)."""
        r, t = (
            v if isinstance(v, Tensor) else torch.full((len(x),), v, dtype=x.dtype, device=x.device) for v in (r, t)
        )
        return x - over(t - r, x) * self.average_velocity(x, r, t, condition)

    def times(self) -> list[float]:
        """The times visited, from 1 to 0."""
        return [1 - i / self.steps for i in range(self.steps + 1)]

    def decode(self, x: Tensor) -> Tensor:
        """Items of states at t = 0: pictures in [0, 1]."""
        items = (x + 1) / 2
        return items.clamp(0, 1) if self.clamp else items

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Integrate from t = 1 to t = 0, and decode."""
        x = self.noise_scale * noise
        for t, r in pairwise(self.times()):
            x = self.jump(x, r, t, condition)
        return self.decode(x)


class FlowMap(FlowGenerator):
    """A network of average velocities: any jump is one evaluation, and one jump is a one-step generator."""

    def __init__(self, steps: int = 1):
        super().__init__(steps)

    @abstractmethod
    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """u: the mean velocity from t down to r (each n), r <= t."""

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """v: the average over no time."""
        return self.average_velocity(x, t, t, condition)


def over(t: Tensor, x: Tensor) -> Tensor:
    """Numbers "n" shaped to multiply states "n ..."."""
    return t.view(-1, *[1] * (x.ndim - 1))
