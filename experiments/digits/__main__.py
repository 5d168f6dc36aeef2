"""The digits as files for `rdm reference`: python -m experiments.digits FOLDER writes train.npz and fresh.npz."""

import io
import sys
from pathlib import Path

import numpy as np

import rdm
from rdm.files.store import write_bytes


def write(folder: Path) -> None:
    """Both splits of the data set, with labels."""
    for split in ("train", "fresh"):
        data, buffer = rdm.dataset("digits", split=split), io.BytesIO()
        np.savez(buffer, images=data.images.numpy(), labels=data.labels.numpy())
        write_bytes(folder / f"{split}.npz", buffer.getvalue())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
