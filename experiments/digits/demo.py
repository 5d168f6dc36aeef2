"""`rdm demo`: the main job on scikit-learn's digits, from encoders trained here to a table and a report."""

from collections.abc import Callable
from pathlib import Path

from experiments.digits.__main__ import write
from rdm.api import require
from rdm.terminal import say

RUNS = Path("runs", "digits")  # where the gin files look for each other's runs
REFERENCE = ("--fresh", f"{RUNS}/fresh.npz", "--battery", "digits", "--out", f"{RUNS}/reference.safetensors")
TRAINED = "classifier", "judge", "flow"


def demo(run: Callable[..., None]) -> None:
    """Run the commands that train encoders and a flow, measure the data, and post-train the flow to one step.

    What is there already is kept, so that the same command goes on after an interrupt.

    Raises:
        InputError: scikit-learn or matplotlib is not installed.
    """
    for package in ("sklearn", "matplotlib"):
        require(package, owner="rdm demo", extra="report")
    for name in TRAINED:
        _step(run, "train", f"digits/{name}", "--out", f"{RUNS}/{name}", "--resume")
    write(RUNS)
    _step(run, "reference", f"{RUNS}/train.npz", *REFERENCE)
    _step(run, "train", "digits/frechet_ema", "--out", f"{RUNS}/frechet_ema", "--resume")


def _step(run: Callable[..., None], *words: str) -> None:
    say(f"rdm {' '.join(words)}")
    run(*words)
