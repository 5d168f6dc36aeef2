"""Moving averages of weights: how fast each forgets, as small objects by name, and the averages of one run."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rdm.errors import InputError
from rdm.files.checkpoint import NO_AVERAGE
from rdm.files.schema import Check, number, record
from rdm.numbers import Positive, Range, Share, check_fields
from rdm.registry import averages
from rdm.scaling.sharding import local
from rdm.scaling.weights import Weights
from rdm.timing.regions import region

Spread = Annotated[float, Range(least=1e-3, most=0.28)]


@dataclass(frozen=True, kw_only=True)
class Average(ABC):
    """a <- beta a + (1 - beta) w after every step that is taken; the first step's weights are the first average.

    Args:
        name: what files and `--average` call it; by default what it is.
        on_cpu: kept in the CPU's memory, to which the weights are copied after every step.
    """

    name: str | None = None
    on_cpu: bool = False

    def __post_init__(self) -> None:  # noqa: D105
        check_fields(self)
        if self.name is not None and (not self.name or self.name == NO_AVERAGE or not self.name.isprintable()):
            raise InputError(f"the name of an average must be a word other than {NO_AVERAGE!r}; got {self.name!r}")

    @property
    def called(self) -> str:
        """Its name, or what it is."""
        return self.name or self.described

    @property
    @abstractmethod
    def described(self) -> str:
        """What it is, in one word."""

    needs_size = False  # whether `beta` needs the number of items a step

    @abstractmethod
    def beta(self, done: int, size: int) -> float:
        """The share that the average keeps after `done` steps in it, each of so many items; 0 after none."""


@averages.register("constant", examples=({"decay": 0.9},))
@dataclass(frozen=True)
class Constant(Average):
    r"""Constant decay: beta at every step but the first, so that the average has a mean age of beta / (1 - beta) steps.

    .. math:: a_t = \beta^{t-1} w_1 + (1 - \beta) \sum_{i=2}^t \beta^{t-i} w_i

    Source: Polyak and Juditsky (1992) for averaging; this form is that of Tarvainen and Valpola (2017).
    """

    decay: Share = 0.999

    @property
    def described(self) -> str:  # noqa: D102
        return f"constant_{self.decay:.12g}"

    def beta(self, done: int, size: int) -> float:  # noqa: D102
        return self.decay if done else 0.0


@averages.register("half_life", examples=({"items": 1000.0}, {"items": 50.0, "ramp": None}))
@dataclass(frozen=True)
class HalfLife(Average):
    r"""Decay by a half-life in items (generated or read, of all ranks), at most a share of those seen so far.

    .. math:: \beta = 2^{-B / \min(H, r s)}, \quad s \text{ items seen before this step of } B

    Source: Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative Models", whose code has
    H = 500,000 and r = 0.05; FD-loss keeps four such averages.

    Args:
        items: the half-life H.
        ramp: the share r; None for none.
    """

    items: Positive = 500_000.0
    ramp: Positive | None = 0.05

    needs_size = True

    @property
    def described(self) -> str:  # noqa: D102
        return f"half_life_{self.items:.12g}"

    def beta(self, done: int, size: int) -> float:  # noqa: D102
        if done == 0:
            return 0.0
        return 0.5 ** (size / (self.items if self.ramp is None else min(self.items, self.ramp * done * size)))


@averages.register("power", examples=({"spread": 0.1},))
@dataclass(frozen=True)
class Power(Average):
    r"""Weights in proportion to a power of their step: an average over a share of the run, however long that is.

    .. math:: a_t = \sum_{i \le t} \frac{i^{\gamma+1} - (i-1)^{\gamma+1}}{t^{\gamma+1}} w_i, \quad
              \beta_t = (1 - 1/t)^{\gamma+1}, \quad
              \sigma_{rel} = \frac{(\gamma+1)^{1/2}}{(\gamma+2) (\gamma+3)^{1/2}}

    Source: Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1: the
    power function's average, with gamma from the width of its profile relative to the run's length.

    Args:
        spread: that width, sigma_rel; 0.05 and 0.10 are what the paper keeps.
    """

    spread: Spread = 0.05

    @property
    def described(self) -> str:  # noqa: D102
        return f"power_{self.spread:.12g}"

    @cached_property
    def exponent(self) -> float:
        """The gamma, not negative, of this spread: spread falls with it."""
        low, high = 0.0, 2 / self.spread
        for _ in range(200):
            middle = (low + high) / 2
            wide = (middle + 1) ** 0.5 / (middle + 2) / (middle + 3) ** 0.5
            low, high = (middle, high) if wide > self.spread else (low, middle)
        return low

    def beta(self, done: int, size: int) -> float:  # noqa: D102
        return (done / (done + 1)) ** (self.exponent + 1)


def as_averages(given: float | Average | Sequence[float | Average] | None) -> list[Average]:
    """Averages as they are, numbers as constant decays; one, several or none.

    Raises:
        InputError: two of one name.
    """
    several = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
    found = [each if isinstance(each, Average) else Constant(decay=float(each)) for each in several]
    names = [each.called for each in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"averages of one run need different names; {repeated[0]!r} occurs twice; give name=")
    return found


class Averages:
    """The moving averages of a run's weights; the first is what is shown and returned.

    Args:
        kinds: how fast each forgets; none for the weights themselves.
        weights: what is averaged. Parameters are averaged as the optimizer steps them (masters in float32, where
            there are such); buffers are those of the last step.
        size: items a step, over all ranks; None where no loss says.

    Raises:
        InputError: an average by items, and no size.
    """

    def __init__(self, kinds: Sequence[Average], weights: Weights, size: int | None = None):
        self.kinds, self.weights, self.done = tuple(kinds), weights, 0
        for each in self.kinds:
            if each.needs_size and size is None:
                raise InputError(f"{each.called} counts items, and no loss says how many a step has; give its `size`")
        self.size = size or 0
        self.held: dict[str, dict[str, Tensor]] = {}
        self._rest = sorted(set(weights.state()) - set(weights.averaged))
        for each in self.kinds:
            copies = {name: _copied(tensor, each) for name, tensor in weights.state().items()}
            self.held[each.called] = copies | {name: _wide(copies[name]) for name in weights.averaged}

    @region("averages")
    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step."""
        taken, averaged = self.weights.taken(), self.weights.averaged
        rest = self.weights.state() if self._rest else {}
        for each in self.kinds:
            held = self.held[each.called]
            old = [held[name] for name in averaged]
            new = [tensor.to(mine) for tensor, mine in zip(taken, old, strict=True)]
            if new:
                get_ema_multi_avg_fn(each.beta(self.done, self.size))(old, new, 0)
            for name in self._rest:
                held[name].copy_(rest[name])
        self.done += 1

    @property
    def first(self) -> dict[str, Tensor]:
        """What is shown and returned: the first average, or the weights where there is none."""
        return self.held[self.kinds[0].called] if self.kinds else self.weights.state()

    @contextmanager
    def shown(self) -> Iterator[nn.Module]:
        """The model with the first average's weights, rounded to its own types, for the length of a block."""
        model = self.weights.model
        if not self.kinds:
            yield model
            return
        kept = {name: _copied(local(tensor), self.kinds[0]) for name, tensor in model.state_dict().items()}
        self.weights.show(self.first)
        try:
            yield model
        finally:
            self.weights.show(kept)

    def state(self) -> dict[str, Any]:
        """Every average by name, and how many steps are in them."""
        return {"averages": {name: self.weights.parts(each) for name, each in self.held.items()}, "averaged": self.done}

    def check(self, step: int) -> dict[str, Check]:
        """What `state` gives at a step."""
        held = {name: self.weights.check(each) for name, each in self.held.items()}
        return {"averages": record(held), "averaged": number(int, low=0, high=step)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, each in self.held.items():
            for key, value in self.weights.mine(state["averages"][name]).items():
                each[key].copy_(value)
        self.done = state["averaged"]


def _copied(tensor: Tensor, kind: Average) -> Tensor:
    """A copy where an average of this kind is kept."""
    return tensor.detach().to("cpu" if kind.on_cpu else tensor.device, copy=True)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 or better, where small steps of an average are not lost."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
