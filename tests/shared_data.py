"""Real data beside the project, through RDM_DATA only; tests without it skip with a reason."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def folder(name: str) -> Path:
    """A data set's folder, or the test skips."""
    root = os.environ.get("RDM_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"needs the data set {name!r} in RDM_DATA")
    return Path(root) / name


def pictures(name: str, file: str, rows: np.ndarray | slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Images "n 3 h w" in [0, 1] and labels of some rows of a data set of JPEG bytes."""
    with np.load(folder(name) / file, allow_pickle=False) as archive:
        data, offsets, labels = archive["data"], archive["offsets"], archive["labels"]
    chosen = np.arange(len(labels))[rows]
    decoded = [
        np.asarray(Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB")) for i in chosen
    ]
    images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(labels[chosen].astype(np.int64))
