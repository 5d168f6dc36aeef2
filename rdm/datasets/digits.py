"""scikit-learn's digits: 1,797 real 8x8 pictures that come with the package."""

from typing import Literal

import numpy as np
import torch

from rdm.api import Dataset, InputError, datasets

FRESH = 500


@datasets.register("digits", needs="scikit-learn")
def digits(split: Literal["train", "fresh", "all"] = "train") -> Dataset:
    """Handwritten digits (Alpaydin and Kaynak 1998), 8x8 grey in [0, 1], 10 classes.

    split "train": 1,297 pictures; "fresh": the other 500, a fixed random draw that no training sees.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError('data set "digits" needs scikit-learn; pip install "rdm-torch[report]"') from error
    pictures, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    rows = {"train": order[FRESH:], "fresh": order[:FRESH], "all": order}[split]
    images = torch.from_numpy(pictures[rows]).float().view(-1, 1, 8, 8) / 16
    return Dataset(f"digits/{split}", images, torch.from_numpy(labels[rows]).long(), classes=10)
