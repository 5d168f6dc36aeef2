"""`rdm encode`: shards with labels, resumed to the same bytes, and read back as a source."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rdm
import rdm.app.encoding
from rdm.__main__ import main
from rdm.data.feed import Feed
from rdm.files.encoded import INDEX
from rdm.registry import networks
from tests import processes
from tests.test_feed import N, pictures, seen, stored


class Squeeze(nn.Module):
    """An autoencoder whose latents are means of squares, beyond [0, 1]."""

    def encode(self, images):
        return nn.functional.avg_pool2d(images, 2) * 10 - 5

    def forward(self, images):
        return nn.functional.interpolate((self.encode(images) + 5) / 10, scale_factor=2.0)


class Tokens(nn.Module):
    """Whole numbers of the pixels of a row."""

    def forward(self, images):
        return images[:, 0, 0].mul(255).long()


@pytest.fixture
def encoders(monkeypatch):
    monkeypatch.setattr(rdm.app.encoding, "ITEMS", 8)  # of a shard
    with networks.temporarily():
        networks.register("squeeze")(Squeeze)
        networks.register("tokens")(Tokens)
        yield


def encode(data: Path, out: Path, name: str, *more: str) -> int:
    return main(["encode", str(data), "--with", name, "--out", str(out), "--batch", "4", *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name, expected", [
    ("squeeze", lambda x: nn.functional.avg_pool2d(x, 2) * 10 - 5), ("tokens", lambda x: (x[:, 0, 0] * 255).long()),
    ("pixels", lambda x: x.flatten(1)),
])  # fmt: skip
def test_what_is_encoded_is_read_back(name, expected, encoders, tmp_path):
    """The same order on disk, so that a feed gives the encodings of what it gave before, with the labels."""
    assert encode(pictures(tmp_path / "data"), tmp_path / "out", name, "--workers", "1") == 0
    assert len(list((tmp_path / "out").iterdir())) == 4, "three shards and an index"
    for real, found in zip(
        *(seen(Feed(stored(tmp_path / where, 1), 9, 0), range(4)) for where in ("data", "out")), strict=True
    ):
        wanted = expected(real.items)
        assert torch.equal(found.items, wanted) and found.items.dtype == wanted.dtype
        assert torch.equal(found.labels, real.labels) and found.numbers == real.numbers


def test_features_are_measured_under_their_encoders_name(encoders, tmp_path):
    pictures(tmp_path / "data")
    assert encode(tmp_path / "data", tmp_path / "out", "random_convolutions", "--dtype", "float16") == 0
    assert main(["reference", str(tmp_path / "out"), "--out", str(tmp_path / "r.safetensors")]) == 0
    member = rdm.Reference.load(tmp_path / "r.safetensors").members["random_convolutions"]
    items = next(iter(stored(tmp_path / "data").read([range(N)]))).items
    assert member.gaussian.mean.shape == rdm.representation("random_convolutions")(items)[0].shape


def test_latents_are_measured_and_trained_on(encoders, tmp_path, monkeypatch):
    """A flow of latents; a battery that takes tensors of any shape."""
    assert encode(pictures(tmp_path / "data"), tmp_path / "out", "squeeze") == 0
    monkeypatch.chdir(tmp_path)
    Path("x.gin").write_text(
        "rdm.train.model = @generators.mlp_flow()\nrdm.train.losses = [@losses.flow_matching()]\n"
        "rdm.train.data = @datasets.files()\ndatasets.files.path = 'out'\nrdm.train.steps = 2\n"
        "generators.mlp_flow.shape = (1, 4, 4)\ngenerators.mlp_flow.classes = 2\ngenerators.mlp_flow.width = 8\n"
    )
    assert main(["train", "x.gin", "--out", "run"]) == 0


def test_an_interrupted_encoding_goes_on_and_damage_is_mended(encoders, tmp_path):
    data, whole, cut = pictures(tmp_path / "data"), tmp_path / "whole", tmp_path / "cut"
    assert encode(data, whole, "squeeze") == 0 == encode(data, cut, "squeeze", "--workers", "2")
    assert contents(whole) == contents(cut)
    (cut / INDEX).unlink()
    (cut / "000001.safetensors").unlink()
    (cut / "000002.safetensors").write_bytes(b"half")
    (cut / ".000000.safetensors.abcd1234").write_bytes(b"of a killed process")
    kept = (cut / "000000.safetensors").stat().st_mtime_ns
    assert encode(data, cut, "squeeze") == 0
    assert contents(whole) == contents(cut) and (cut / "000000.safetensors").stat().st_mtime_ns == kept


def test_broken_items_are_named_or_left_out(encoders, tmp_path, capsys):
    (pictures(tmp_path / "data") / "0" / "0004.png").write_bytes(b"")
    assert encode(tmp_path / "data", tmp_path / "out", "squeeze") == 2
    assert "0004.png cannot be read" in capsys.readouterr().err
    assert encode(tmp_path / "data", tmp_path / "some", "squeeze", "--skip-broken") == 0
    assert f"{N - 1} items" in (said := capsys.readouterr().err) and "1 broken items left out" in said
    assert len(stored(tmp_path / "some")) == N - 1


def test_wrong_commands_and_folders_are_one_line(encoders, tmp_path, capsys):
    data, out = pictures(tmp_path / "data"), tmp_path / "out"
    assert encode(data, out, "squeeze") == 0

    def says(status: int, line: str) -> None:
        said = capsys.readouterr().err
        assert status == 2 and line in said and said.count("\n") == 1, said

    capsys.readouterr()
    says(encode(data, out, "tokens"), "encoded.json was encoded otherwise")
    says(encode(data, tmp_path / "b", "sqeeze"), "unknown representation or network 'sqeeze'; did you mean 'squeeze'?")
    says(encode(data, tmp_path / "b", "squeeze", "--batch", "0"), "--batch must be")
    says(encode(tmp_path / "none", tmp_path / "b", "squeeze"), "there is none")
    make = ["reference", str(out), "--battery", "untrained", "--out", str(tmp_path / "r.safetensors")]
    for harm, line in (
        (lambda f: (f / "000001.safetensors").unlink(), "expected a file at"),
        (lambda f: shutil.copy(f / "000000.safetensors", f / "000001.safetensors"), f"{INDEX} names"),
        (lambda f: (f / "000001.safetensors").write_bytes(b"x"), "truncated or altered"),
        (lambda f: (f / INDEX).write_text("{}"), "kind is missing"),
    ):
        shutil.rmtree(out)
        assert encode(data, out, "squeeze") == 0
        harm(out)
        capsys.readouterr()
        says(main(make), line)


@pytest.mark.slow
def test_an_encoding_that_is_killed_ends_with_the_same_bytes(tmp_path):
    """At moments from the start of the process on; and so does one of two ranks."""
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((20_000, 1, 16, 16), np.float32))
    command = ["encode", "data.npy", "--with", "random_convolutions", "--batch", "20", "--workers", "1", "--out"]
    process, began = processes.rdm(*command, "whole", cwd=tmp_path), time.monotonic()
    assert process.wait() == 0
    draw, whole, kills = np.random.default_rng(0), time.monotonic() - began, 0
    for _ in range(12):
        process = processes.rdm(*command, "cut", cwd=tmp_path)
        try:
            assert process.wait(timeout=draw.uniform(0.05, 0.6) * whole) == 0, process.communicate()
            break
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
    assert processes.rdm(*command, "cut", cwd=tmp_path).wait() == 0
    assert [each.wait() for each in processes.rdm_on_ranks(*command, "ranks", cwd=tmp_path)] == [0, 0]
    assert kills > 0 and contents(tmp_path / "whole") == contents(tmp_path / "cut") == contents(tmp_path / "ranks")


def test_latents_of_an_autoencoder_keep_their_form(tmp_path):
    """Maps, whose patch means are the features of the representation of the same weights."""
    pytest.importorskip("diffusers")
    from representations.autoencoder import TINY, AutoencoderLatents

    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(0)
    network = AutoencoderLatents("tiny", 16, weights="random", arguments=TINY).eval()
    latents = network.encode(images)
    assert latents.shape == (2, 4, 8, 8)
    torch.manual_seed(0)
    features = rdm.representation("autoencoder", model="tiny", size=16, patch=4, weights="random", arguments=TINY)
    assert torch.allclose(features(images), nn.functional.avg_pool2d(latents, 4).flatten(1), atol=1e-6)
