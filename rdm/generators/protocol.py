"""The interface of a generator; flow models and flow maps read as generators.

t = 0 is data and t = 1 is noise everywhere: x_t = (1 - t) x_0 + t z, with velocity v = dx/dt = z - x_0. The average
velocity u(x, r, t) over r..t jumps from x_t to x_r = x_t - (t - r) u; u(x, t, t) = v(x, t).
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.data.condition import Condition, Conditions, Numbers, described, moved, rows_of
from rdm.errors import InputError, first_line
from rdm.randomness import seeded

BLOCK = 2**24  # numbers of noise that one stream draws

Solver = Literal["euler", "heun"]


class Generator(nn.Module, ABC):
    """images = generator(noise, condition): deterministic, one item a row of noise; pictures "n c h w" in [0, 1].

    Any callable of the same form works with `rdm.Population`; this class adds what the trainer needs to draw inputs.
    """

    shape: tuple[int, ...]  # of one item's noise
    classes: int | None = None  # class labels are the condition; None for none, or for conditions of another kind

    @abstractmethod
    def forward(self, noise: Tensor, condition: Any = None) -> Tensor:
        """Generate items."""

    @property
    def conditions(self) -> Conditions | None:
        """What it is asked for where nobody says: its classes, uniformly; None for nothing."""
        return None if self.classes is None else Numbers(self.classes)

    @property
    def behind(self) -> Sequence[nn.Module]:
        """Frozen modules that it uses and that are none of its own, such as a decoder that copies share."""
        return ()

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise "n ...", on the generator's device."""
        return torch.randn(n, *self.shape, generator=generator, device=generator.device)

    def draw(
        self, n: int, generator: torch.Generator, conditions: Conditions | None = None
    ) -> tuple[Tensor, Condition | None]:
        """Noise and conditions, its own ones where none are given, on the generator's device."""
        return drawn(self, conditions or self.conditions, n, slice(0, n), lambda _: generator)


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
    is_map: bool = False  # a jump of any length is one evaluation of a network that is told both times
    null: int | None = None  # the label that stands for no class, where the network has one

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
        if self.solver == "euler" or not bool(r.any()):
            return slope
        return (slope + self.velocity(x - over(t - r, x) * slope, r, condition)) / 2

    def jump(self, x: Tensor, r: Tensor | float, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """From states at times t to those at times r (numbers, or n each)."""
        last = not (self.is_map or isinstance(r, Tensor)) and r == 0  # whose step is Euler's, without a look at values
        r, t = (
            v if isinstance(v, Tensor) else torch.full((len(x),), v, dtype=x.dtype, device=x.device) for v in (r, t)
        )
        slope = self.velocity(x, t, condition) if last else self.average_velocity(x, r, t, condition)
        return x - over(t - r, x) * slope

    def times(self) -> list[float]:
        """The times visited, from 1 to 0."""
        return [1 - i / self.steps for i in range(self.steps + 1)]

    def decode(self, x: Tensor) -> Tensor:
        """Items of states at t = 0: pictures in [0, 1]."""
        items = (x + 1) / 2
        return items.clamp(0, 1) if self.clamp else items

    def encode(self, items: Tensor) -> Tensor:
        """States at t = 0 of items, in their shape: pictures in [0, 1] mapped to [-1, 1]."""
        return items * 2 - 1

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Integrate from t = 1 to t = 0, and decode."""
        x = self.noise_scale * noise
        for t, r in pairwise(self.times()):
            x = self.jump(x, r, t, condition)
        return self.decode(x)


class FlowMap(FlowGenerator):
    """A network of average velocities: any jump is one evaluation, and one jump is a one-step generator."""

    is_map = True

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


def drawn(
    generator: Generator, conditions: Conditions | None, n: int, mine: slice, stream: Callable[[int], torch.Generator]
) -> tuple[Tensor, Condition | None]:
    """Noise and conditions of `mine` among n items, the same however the n are shared out.

    `stream(k)` draws the noise of the k-th block of items; the first one goes on to draw which conditions all n get,
    and these are read for `mine` alone.
    """
    size, pieces, first = max(1, BLOCK // max(1, math.prod(generator.shape))), [], stream(0)
    for k, start in enumerate(range(0, n, size)):
        stop = min(start + size, n)
        if k and not (start < mine.stop and mine.start < stop):
            continue
        block = generator.noise(stop - start, stream(k) if k else first)
        pieces.append(block[max(mine.start - start, 0) : max(mine.stop - start, 0)])
    noise = torch.cat(pieces)
    if conditions is None:
        return noise, None
    which = rows_of(conditions.draw(n, first), mine)
    return noise, moved(conditions.read(which), noise.device)


def sampled(generator: Generator, noise: Tensor, condition: Condition | None, chunk: int) -> Iterator[Tensor]:
    """Items, so many in one forward pass, without gradient and in evaluation mode; on the generator's device."""
    device, training = next(generator.parameters()).device, generator.training
    generator.eval()
    try:
        for start in range(0, len(noise), chunk):
            rows = slice(start, start + chunk)
            with torch.no_grad():
                yield generator(noise[rows].to(device), moved(rows_of(condition, rows), device))
    finally:
        generator.train(training)


def tried(generator: Generator, conditions: Conditions) -> tuple[Tensor, Condition | None]:
    """Two items under the first and the last condition, and these; nothing is drawn from the global random state.

    Raises:
        InputError: conditions that the generator cannot take.
    """
    if generator.classes is not None and conditions.count is not None and conditions.count > generator.classes:
        raise InputError(
            f"the generator takes {generator.classes} classes; got conditions of {conditions.count}; give as many"
        )
    source = torch.Generator().manual_seed(0)
    ends = None if conditions.count is None else torch.tensor([0, conditions.count - 1])
    condition = conditions.read(conditions.draw(2, source) if ends is None else ends)
    device = next(generator.parameters()).device
    with seeded(0), warnings.catch_warnings(action="ignore"):  # the first step gives them again
        try:
            (items,) = sampled(generator, generator.noise(2, source), condition, 2)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(
                f"the generator cannot take these conditions ({described(condition)}): {first_line(error)}; give those "
                "that it was made for"
            ) from error
    return items, moved(condition, device)
