"""What a run looks at now and then: grids of pictures, and what monitors measure."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from rdm.data.condition import moved
from rdm.distributed import rank
from rdm.errors import NonFiniteError
from rdm.files.pictures import save_grid
from rdm.generators.protocol import Generator, sampled
from rdm.randomness import seeded, stream
from rdm.scaling.arithmetic import Arithmetic
from rdm.scaling.sharding import is_sharded
from rdm.surviving.ranks import alone
from rdm.surviving.saving import spared
from rdm.timing.regions import region
from rdm.training.loss import Loss, Setting

ROWS, COLUMNS, FEW = 8, 8, 10  # with up to FEW different conditions, each has its column


@region("grids")
def draw_grid(
    out: Path, model: nn.Module, losses: Sequence[Loss], step: int, seed: int, shown: Callable[[str], object]
) -> None:
    """Pictures from the conditions that the losses ask for, from noise and conditions that are the same at every step.

    A column a condition where there are few, else as they are drawn; one row of the grid in a forward pass. `shown`
    says that the disk is full. Every rank draws them where the model is sharded.
    """
    if not isinstance(model, Generator) or (rank() > 0 and not is_sharded(model)):
        return
    conditions = next((loss.conditions for loss in losses if loss.conditions is not None), model.conditions)
    count = None if conditions is None else conditions.count
    few = count is not None and 1 < count <= FEW
    columns, source, condition = count if few and count else COLUMNS, stream(seed, "grid"), None
    noise = model.noise(ROWS * columns, source)
    if conditions is not None:
        which = torch.arange(columns).repeat(ROWS) if few else conditions.draw(len(noise), source)
        condition = moved(conditions.read(which), noise.device)
    with alone("drawing samples"):
        images = torch.cat([part.cpu() for part in sampled(model, noise, condition, columns)])
        if rank() == 0 and images.ndim == 4:  # other items have no picture
            with spared(f"samples of step {step}", shown):
                save_grid(out / "samples" / f"{step:08d}.png", images, columns=columns)


class Monitor(ABC):
    """What is measured of a model after every `every` steps, into the log's row; training is as without it.

    It is called without gradient, in evaluation mode and on a copy of the global random state; its own randomness
    follows from seed and step. Every rank calls it.
    """

    every: int

    @abstractmethod
    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Bind to data and device, once."""

    @abstractmethod
    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Numbers by their names in the log, after so many steps; the same on every rank."""

    def alarm(self, first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
        """What is to be said of the numbers, beside the first of the run that have their names."""
        return None


@region("monitors")
def watch(
    monitors: Sequence[Monitor],
    model: nn.Module,
    step: int,
    arithmetic: Arithmetic,
    first: Mapping[str, float],
    shown: Callable[[str], object],
) -> dict[str, float]:
    """What the monitors whose turn it is measure; one that finds something not finite says so and gives nothing.

    `first` has the run's first numbers by name, on rank 0.
    """
    found = dict[str, float]()
    for monitor in monitors:
        if step % monitor.every == 0:
            try:
                with _apart(model), arithmetic():
                    now = monitor(model, step)
            except NonFiniteError as error:
                shown(f"{type(monitor).__name__} after step {step}: {error}")
                continue
            found |= now
            if alarm := monitor.alarm(first, now):
                shown(f"after step {step}: {alarm}")
    return found


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """A block that leaves gradients, modes and random states as they are."""
    training = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), seeded(0):
            model.eval()
            yield
    finally:
        for module, before in training:
            module.training = before
