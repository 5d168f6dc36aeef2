"""CIFAR-10: 60,000 pictures of 32 x 32 in ten classes, as JPEG files end to end."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from rdm.api import Stored, Workers, datasets
from rdm.datasets._place import place


@datasets.register("cifar10", needs="cifar10/train_jpeg.npz and test_jpeg.npz in the folder that RDM_DATA names")
def cifar10(split: Literal["train", "test"] = "train", workers: Workers = 0) -> Stored:
    """CIFAR-10 (Krizhevsky 2009), read while it is used: 50,000 pictures to train on or the 10,000 others.

    Files as in the source "encoded". Pictures that were compressed to JPEG have other distances than those of the
    original release.
    """
    stored = Stored.open(place("cifar10", Path("cifar10", f"{split}_jpeg.npz")), workers=workers)
    return replace(stored, name=f"cifar10/{split}")
