"""Files whose hashes are right and whose content is not: one line and status 2, or the answer that the file gave.

What cannot be told from another valid file (a row that is another row, a seed that is another seed) is not a forgery
of these tests; all that a description, a count, an order or a second entry of the file contradicts is.
"""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdm.__main__ import main
from rdm.errors import InputError
from rdm.judge import Rows, battery_of, judge
from rdm.reference_file import ReferenceFile
from tests.forge import altered, forgeries, put

shares = pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])


def each(forged: Iterable, share: float) -> list:
    """A share of the forgeries, drawn."""
    found = list(forged)
    assert len(found) > 20
    return random.Random(0).sample(found, max(20, round(share * len(found))))


def holds(answer: Callable[[Path], Any], whole: Path, forged: Iterable, at: Path) -> tuple[int, int]:
    """Every forgery is refused in a line or gives the answer of the whole file; counts of both."""
    expected, refused, same = answer(whole), 0, 0
    for what, write in forged:
        write(at)
        try:
            found = answer(at)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600 and at.name in str(error), (what, error)
            refused += 1
        else:
            assert found == expected, what
            same += 1
    return refused, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reference of features, one of pictures under a fitted battery, and moments."""
    at = tmp_path_factory.mktemp("forged")
    source = np.random.default_rng(0)
    np.savez(at / "rows.npz", features=source.normal(1, 1, (60, 3)).astype(np.float32), labels=np.arange(60) % 2)
    np.savez(at / "pictures.npz", images=source.integers(0, 256, (90, 4, 4), dtype=np.uint8), labels=np.arange(90) % 3)
    for data, out, *options in (
        ("rows.npz", "rows.safetensors", "--per-class", "--landmarks", "4", "--split", "0.4"),
        ("pictures.npz", "pictures.safetensors", "--battery", "untrained"),
        ("rows.safetensors", "moments.npz"),
    ):
        assert main(["reference", str(at / data), "--out", str(at / out), *options]) == 0
    return at


@shares
def test_a_reference_of_features(folder, tmp_path, share):
    x = {"features": torch.randn(30, 3, generator=torch.Generator().manual_seed(1))}

    def answer(path):
        return judge(Rows(x, {"8-bit"}), ReferenceFile.load(path), ["fd", "mmd", "fdr"]).metrics

    whole = folder / "rows.safetensors"
    refused, same = holds(answer, whole, each(forgeries(whole), share), tmp_path / "r.safetensors")
    assert same < refused / 4, (refused, same)


@shares
def test_a_reference_of_pictures_and_its_fitted_encoders(folder, tmp_path, share):
    items = torch.rand(3, 1, 4, 4)

    def answer(path):
        file = ReferenceFile.load(path)
        battery = battery_of(file, file.description["form"]["shape"], path, torch.device("cpu"))
        return {m.name: m(items).tolist() for m in (*battery.members, *battery.held_out)}

    whole = folder / "pictures.safetensors"
    refused, same = holds(answer, whole, each(forgeries(whole), share / 2), tmp_path / "r.safetensors")
    assert same < refused / 4, (refused, same)


def test_moments(folder, tmp_path):
    """In .npz of numpy, and as numpy's scalars, objects and text."""
    whole = folder / "moments.npz"
    held = {name: torch.from_numpy(array) for name, array in np.load(whole).items()}
    forged = []
    for name, value in held.items():
        for what, other in altered(value):
            forged.append((f"{name} {what}", {k: v.numpy() for k, v in put(held, (name,), other).items()}))
    numpy = {k: v.numpy() for k, v in held.items()}
    lopsided = numpy["sigma"] + np.triu(np.ones((3, 3)), 1)
    for what, change in {
        "text": {"mu": np.array(["a", "b", "c"])},
        "objects": {"mu": np.array([{}, None, 1], dtype=object)},
        "negative": {"sigma": -np.eye(3)},
        "indefinite": {"sigma": np.eye(3) + 2 * (1 - np.eye(3)) * -1},
        "lopsided": {"sigma": lopsided},
        "huge": {"sigma": np.eye(3) * 1e200},
    }.items():
        forged.append((what, {**numpy, **change}))

    def answer(path):
        x = {"features": torch.randn(30, 3, generator=torch.Generator().manual_seed(1))}
        value = judge(Rows(x, set()), ReferenceFile.load(path), ["fd"]).metrics["fd/features"].value
        return pytest.approx(value, rel=1e-5)  # of float32 moments too

    writers = [(what, lambda at, arrays=arrays: np.savez(at, **arrays)) for what, arrays in forged]
    refused, same = holds(answer, whole, writers, tmp_path / "m.npz")
    kinds = {what for what, _ in forged}
    assert refused >= 30 and same <= sum("float32" in what or "transposed" in what for what in kinds), (refused, same)
    data = whole.read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "m.npz").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"m.npz") as caught:
            ReferenceFile.load(tmp_path / "m.npz")
        assert "pickle" not in str(caught.value) or "allow" not in str(caught.value)
