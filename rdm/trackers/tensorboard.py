"""TensorBoard, by torch's writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdm.api import require, trackers


@trackers.register("tensorboard", needs="tensorboard")
class TensorBoard:
    """Every number of the log as a scalar, in the run folder's tensorboard/ (`tensorboard --logdir runs`).

    Raises:
        InputError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        self._module = require("torch.utils.tensorboard", owner="this tracker", extra="track")
        self._writer: Any = None

    def start(self, config: str, out: Path, step: int) -> None:
        """Open a file of events; what earlier ones hold of steps after `step` is purged."""
        self._writer = self._module.SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        if step == 0 and config:
            self._writer.add_text("config", "".join(f"    {line}\n" for line in config.splitlines()), 0)

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """One scalar a number."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()
