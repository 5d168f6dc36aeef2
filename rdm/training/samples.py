"""The grid of pictures that a run draws now and then."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from rdm.data.condition import moved
from rdm.distributed import rank
from rdm.files.pictures import save_grid
from rdm.generators.protocol import Generator, sampled
from rdm.randomness import stream
from rdm.scaling.sharding import is_sharded
from rdm.surviving.ranks import alone
from rdm.surviving.saving import spared
from rdm.timing.regions import region
from rdm.training.loss import Loss

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
