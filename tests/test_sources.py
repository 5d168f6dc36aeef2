"""Sources: every form gives the same items; conversions are as documented; wrong data is one line."""

import gzip
import io
import json
import os
import struct
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import rdm
from rdm.errors import InputError
from rdm.source import BrokenItem, Form, Given, centre_crop, open_source

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def items(path: Path, **form) -> torch.Tensor:
    source, form = open_source(path), Form(**form)
    first = form.item(source, 0)
    return torch.stack([form.item(source, i, first).value for i in range(len(source))])


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_every_form_gives_the_same_pictures_and_labels(tmp_path):
    encoded = [png(p) for p in PICTURES]
    for i, data in enumerate(encoded):
        (tmp_path / "folder" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / f"{i % 2}" / f"{i}.png").write_bytes(data)
    tar = {f"a/{i}.png": data for i, data in enumerate(encoded)} | {f"a/{i}.cls": b"%d" % (i % 2) for i in range(6)}
    tar_of(tmp_path / "t.tar", tar)
    offsets = np.cumsum([0, *map(len, encoded)])
    labels = np.arange(6) % 2
    np.savez(tmp_path / "e.npz", data=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets, labels=labels)
    np.savez_compressed(tmp_path / "p.npz", images=PICTURES, labels=labels)
    np.save(tmp_path / "p.npy", PICTURES)
    save_file(
        {"images": np.ascontiguousarray(PICTURES.transpose(0, 3, 1, 2), np.float32) / 255}, tmp_path / "p.safetensors"
    )
    expected = torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255
    forms = {"t.tar": "Tar", "e.npz": "Encoded", "p.npz": "Pictures", "p.npy": "Pictures", "p.safetensors": "Pictures"}
    for name, form in forms.items():
        source = open_source(tmp_path / name)
        assert type(source).__name__ == form
        torch.testing.assert_close(items(tmp_path / name), expected)
        wanted = [-1] * 6 if name in ("p.npy", "p.safetensors") else labels.tolist()
        assert [source.label(i) for i in range(6)] == wanted, name
    folder = open_source(tmp_path / "folder")
    assert [folder.name(i) for i in range(6)] == ["0/0.png", "0/2.png", "0/4.png", "1/1.png", "1/3.png", "1/5.png"]
    assert [folder.label(i) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(items(tmp_path / "folder"), expected[[0, 2, 4, 1, 3, 5]])
    given = Given(expected)
    assert torch.equal(Form().item(given, 2).value, expected[2])


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_with_their_labels(tmp_path, packed):
    grey = PICTURES[:, :, :, 0]
    images = struct.pack(">4B3i", 0, 0, 8, 3, *grey.shape) + grey.tobytes()
    labels = struct.pack(">4Bi", 0, 0, 8, 1, 6) + bytes(range(6))
    suffix, write = (".gz", gzip.compress) if packed else ("", bytes)
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(write(images))
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(write(labels))
    source = open_source(tmp_path / f"t10k-images-idx3-ubyte{suffix}")
    torch.testing.assert_close(items(source.path), torch.from_numpy(grey.copy())[:, None] / 255)
    assert source.label(5) == 5
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(write(images[:-1]))
    with pytest.raises(InputError, match="truncated or no ubyte idx file"):
        len(open_source(source.path))


def test_sound(tmp_path):
    for i, (width, kind) in enumerate(((2, "<i2"), (1, "u1"), (4, "<i4"))):
        tone = np.sin(np.arange(50) / 5) * 0.5
        whole = (tone * 2 ** (8 * width - 1) + (128 if width == 1 else 0)).astype(kind)
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as file:
            file.setparams((2, width, 8000, 0, "NONE", ""))
            file.writeframes(np.stack([whole, whole], 1).tobytes())
        np.testing.assert_allclose(items(tmp_path)[i].numpy(), tone, atol=0.01)
    assert open_source(tmp_path).kind == "audio" and open_source(tmp_path).rate == 8000
    audio = np.arange(12, dtype=np.int16)
    np.savez(tmp_path / "a.npz", audio=audio, offsets=[0, 5, 12], labels=[3, 4])
    with pytest.raises(InputError, match="00000000 is 5 long and 00000001 is 7 long; give --size"):
        items(tmp_path / "a.npz")
    assert items(tmp_path / "a.npz", size=6).shape == (2, 6)
    assert float(items(tmp_path / "a.npz", size=6)[0, 5]) == 0


def test_features(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "f.npy", rows)
    np.savez(tmp_path / "f.npz", clip=rows, mae=rows[:, :2])
    assert list(open_source(tmp_path / "f.npy").members) == ["features"]
    source = open_source(tmp_path / "f.npz")
    assert source.kind == "features" and list(source.members) == ["clip", "mae"] and source.read(1).shape == (5,)
    np.savez(tmp_path / "f.npz", clip=rows, mae=rows[:4])
    with pytest.raises(InputError, match="equally many rows; got clip 5, mae 4"):
        open_source(tmp_path / "f.npz")


def test_conversions_are_as_documented(tmp_path):
    grey = PICTURES[0, :, :, 0]
    deep = (grey.astype(np.uint16) * 257)[:, :, None]
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep[:, :, 0]).save(tmp_path / "deep" / "a.png")
    torch.testing.assert_close(items(tmp_path / "deep")[0, 0], torch.from_numpy(grey.copy()) / 255)
    assert Form().item(open_source(tmp_path / "deep"), 0).depth == "16-bit"
    clear = np.dstack([PICTURES[0], np.full((10, 12), 0, np.uint8)])
    half = np.dstack([np.zeros((10, 12, 3), np.uint8), np.full((10, 12), 51, np.uint8)])
    files = {"a": png(PICTURES[0]), "b": png(clear), "c": png(half), "d": png(grey), "e": png(PICTURES[0], "P")}
    (tmp_path / "mixed").mkdir()
    for name, data in files.items():
        (tmp_path / "mixed" / f"{name}.png").write_bytes(data)
    found = items(tmp_path / "mixed")
    assert found.shape == (5, 3, 10, 12)
    assert torch.all(found[1] == 1), "transparent is white"
    assert torch.allclose(found[2], torch.tensor(0.8)), "a fifth black over white"
    assert torch.equal(found[3, 0], found[3, 2]), "grey among colour is three equal channels"
    (tmp_path / "mixed" / "0.png").write_bytes(png(grey))
    with pytest.raises(InputError, match="a.png has 3 channels, items before it 1; give --channels 3"):
        items(tmp_path / "mixed")
    assert items(tmp_path / "mixed", channels=3).shape == (6, 3, 10, 12)


def test_adm_crop_is_guided_diffusions():
    def theirs(picture, size):  # guided_diffusion/image_datasets.py, center_crop_arr
        while min(*picture.size) >= 2 * size:
            picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.Resampling.BOX)
        scale = size / min(*picture.size)
        picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.Resampling.BICUBIC)
        array = np.array(picture)
        y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
        return array[y : y + size, x : x + size]

    for shape in ((50, 73), (41, 16), (17, 90)):
        array = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        np.testing.assert_array_equal(centre_crop(array, 16), theirs(Image.fromarray(array), 16))
        floats = centre_crop(array.astype(np.float32) / 255, 16)
        assert np.abs(floats * 255 - centre_crop(array, 16)).max() < 8, "8-bit rounds each halving"
    square = PICTURES[0][:, :10]
    assert (centre_crop(square, 10) == square).all(), "of that size already"


def test_wrong_data_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "a.png").write_bytes(png(PICTURES[0]))
    (tmp_path / "sizes" / "b.png").write_bytes(png(PICTURES[0][:5]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(png(PICTURES[0])[:60])
    np.save(tmp_path / "wild.npy", np.full((2, 3, 4, 4), 2.0, np.float32))
    np.save(tmp_path / "nan.npy", np.full((2, 3, 4, 4), np.nan, np.float32))
    np.save(tmp_path / "int.npy", np.zeros((2, 4, 4), np.int64))
    np.save(tmp_path / "four.npy", np.zeros((2, 4, 5, 6), np.uint8))
    (tmp_path / "a.txt").write_text("no")
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 broken")
    for name, message in {
        "nowhere": "expected data at .*; there is none",
        "empty": "is an empty folder; expected pictures or wav files in it",
        "a.txt": "has no known form",
        "sizes": "a.png is 12x10 and b.png is 12x5; give --size to make them equal",
        "broken": r"a.png cannot be read",
        "wild.npy": r"floats must lie in \[0, 1\]; got 2 to 2",
        "nan.npy": "NaN or infinity in 48 values",
        "int.npy": "must be 8-bit, 16-bit or float",
        "four.npy": r"must have 1 or 3 channels, first or last; got shape \(2, 4, 5, 6\)",
        "t.npz": "t.npz cannot be read",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            items(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(BrokenItem):
        items(tmp_path / "broken")


@pytest.mark.skipif("RDM_DATA" not in os.environ, reason="needs RDM_DATA, the folder of shared data sets")
def test_shared_data_are_read():
    data = Path(os.environ["RDM_DATA"])
    for name, kind, count, shape in (
        ("cifar10/test_jpeg.npz", "images", 10_000, (3, 32, 32)),
        ("imagenette224/val_jpeg.npz", "images", 2000, (3, 224, 224)),
        ("mnist/t10k-images-idx3-ubyte.gz", "images", 10_000, (1, 28, 28)),
        ("fashion_mnist/sprite900.npz", "images", 900, (1, 28, 28)),
        ("fsdd/fsdd_8khz_int16.npz", "audio", 3000, (4000,)),
    ):
        source = open_source(data / name)
        assert (source.kind, len(source)) == (kind, count)
        item = Form(size=4000 if kind == "audio" else None).item(source, count - 1)
        assert item.value.shape == shape and 0 <= item.label <= 9
        assert item == Form(size=4000 if kind == "audio" else None).item(source, count - 1)._replace(value=item.value)
    assert json.dumps(rdm.names("sources")).count('"') == 2 * len(rdm.names("sources"))
