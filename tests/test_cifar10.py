"""CIFAR-10: the data set, and the study's own files with a tiny network, few steps and few pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rdm

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "experiments" / "cifar10"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder for RDM_DATA with 40 coloured pictures a split."""
    place = tmp_path / "data"
    (place / "cifar10").mkdir(parents=True)
    for seed, split in enumerate(("train", "test")):
        draw, files = np.random.default_rng(seed), list[bytes]()
        for _ in range(40):
            buffer = io.BytesIO()
            tiles = draw.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(tiles).save(buffer, "JPEG")
            files.append(buffer.getvalue())
        offsets, labels = np.cumsum([0, *map(len, files)]), np.arange(40) % 10
        whole = np.frombuffer(b"".join(files), np.uint8)
        np.savez(place / "cifar10" / f"{split}_jpeg.npz", data=whole, offsets=offsets, labels=labels)
    monkeypatch.setenv("RDM_DATA", str(place))
    return place


def test_the_data_set_is_both_splits(data):
    for split in ("train", "test"):
        found = rdm.dataset("cifar10", split=split)
        assert len(found) == 40 and found.name == f"cifar10/{split}" and found.labels.tolist() == [*range(10)] * 4
        (part,) = found.read([[3, 7]])
        with np.load(data / "cifar10" / f"{split}_jpeg.npz") as file:
            picture = np.asarray(
                Image.open(io.BytesIO(file["data"][file["offsets"][3] : file["offsets"][4]].tobytes()))
            )
        assert torch.equal((part.items[0] * 255).round().byte(), torch.tensor(picture).permute(2, 0, 1))
        assert part.labels.tolist() == [3, 7]
