"""Weights & Biases."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdm.api import refuse_if_confined, require, trackers, write_text


@trackers.register("wandb", needs="wandb")
class WandB:
    """Every number of the log to Weights & Biases; WANDB_MODE=offline keeps them in the run folder's wandb/.

    A resumed run goes on under its id, kept in the run folder's wandb_id.txt. What comes again of steps after the
    checkpoint is left out there, since it is the same.

    Args:
        project: where the run belongs.
        name: what it is called; by default as its folder.

    Raises:
        InputError: wandb is not installed.
        RestrictedError: the configuration is not trusted.
    """

    def __init__(self, project: str = "rdm", name: str | None = None):
        refuse_if_confined("send its log to a server")
        self._module = require("wandb", owner="this tracker", extra="track")
        self._project, self._name = project, name
        self._run: Any = None

    def start(self, config: str, out: Path, step: int) -> None:
        """Begin the run, or go on with it."""
        kept = out / "wandb_id.txt"
        if not kept.exists():
            write_text(kept, uuid.uuid4().hex)
        self._run = self._module.init(
            project=self._project,
            name=self._name or out.resolve().name,
            id=kept.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(out),
            config={"gin": config},
        )

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(record), step=step)

    def finish(self) -> None:
        """Send what waits."""
        self._run.finish()
