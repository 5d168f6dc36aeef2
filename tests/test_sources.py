"""Sources: every form gives the same items; conversions are as documented; wrong data is one line."""

import gzip
import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import rdm
from rdm.errors import InputError
from rdm.items import first_item
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
    audio = np.arange(12, dtype=np.int16)
    np.savez(tmp_path / "a.npz", audio=audio, offsets=[0, 5, 12], labels=[3, 4])
    with pytest.raises(InputError, match="00000000 is 5 long and 00000001 is 7 long; give --size"):
        items(tmp_path / "a.npz")
    assert items(tmp_path / "a.npz", size=6).shape == (2, 6)
    assert float(items(tmp_path / "a.npz", size=6)[0, 5]) == 0


def wav(sound: np.ndarray, rate: int = 8000, kind: int = 1, extensible: bool = False) -> bytes:
    """A wav file of "t channels" as the specification has it; of 3 bytes a sample from bytes "t channels 3"."""
    width = 3 if sound.ndim == 3 else sound.dtype.itemsize
    channels = sound.shape[1]
    said = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, 0, width * channels, 8 * width)
    if extensible:
        said += struct.pack("<HHIH", 22, 8 * width, 0, kind) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = b"".join(
        name + struct.pack("<I", len(data)) + data for name, data in ((b"fmt ", said), (b"data", sound.tobytes()))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("form", ["u1", "<i2", "i3", "<i4", "<f4", "<f8"])
def test_every_wav_format_is_the_same_sound(tmp_path, form, extensible):
    tone = np.sin(np.arange(50) / 5) * 0.5
    scaled = {"u1": tone * 128 + 128, "<i2": tone * 2**15, "i3": tone * 2**31, "<i4": tone * 2**31}.get(form, tone)
    whole = np.stack([scaled, scaled], 1).astype("<i4" if form == "i3" else form)
    whole = whole.view("u1").reshape(50, 2, 4)[:, :, 1:] if form == "i3" else whole
    data = wav(np.ascontiguousarray(whole), kind=3 if "f" in form else 1, extensible=extensible)
    (tmp_path / "0.wav").write_bytes(data)
    np.testing.assert_allclose(items(tmp_path)[0].numpy(), tone, atol=0.01 if form == "u1" else 1e-4)
    assert open_source(tmp_path).rate == 8000
    size = data.index(b"data") + 4
    for wrong, message in (
        (data[:-1], "it is truncated"),
        (data[:size], "holds no sound"),
        (b"OggS" + data[4:], "begins with b'OggS'; expected a RIFF wav file"),
    ):
        (tmp_path / "0.wav").write_bytes(wrong)
        with pytest.raises(InputError, match=f"none of the 1 items can be read; .*0.wav cannot be read .*{message}"):
            first_item(open_source(tmp_path), Form())
    (tmp_path / "0.wav").write_bytes(data[:size] + b"\xff\xff\xff\xff" + data[size + 4 :])
    assert items(tmp_path).shape == (1, 50), "the size that is left by a writer to a pipe"


def test_sound_that_is_not_read_is_said(tmp_path):
    (tmp_path / "0.wav").write_bytes(wav(np.zeros((50, 1), np.uint8), kind=7))
    with pytest.raises(InputError, match=r"0.wav cannot be read \(format 7 \(mu-law\) of 8 bits"):
        first_item(open_source(tmp_path), Form())
    (tmp_path / "1.wav").write_bytes(wav(np.zeros((50, 1), np.float32), kind=3))
    assert open_source(tmp_path).rate == 8000, "of the first one that can be read"
    assert first_item(open_source(tmp_path), Form()).name == "1.wav"
    (tmp_path / "2.wav").write_bytes(wav(np.full((50, 1), 9, np.float32), kind=3))
    (tmp_path / "3.wav").write_bytes(wav(np.full((50, 1), np.nan, np.float32), kind=3))
    (tmp_path / "4.wav").write_bytes(wav(np.zeros((50, 1), np.int16), rate=16000))
    for i, message in ((2, "2.wav: floats must lie in .-1, 1.; got 9 to 9"), (3, "3.wav: NaN or infinity in 50"),
                       (4, "1.wav has 8000 samples a second and 4.wav 16000; resample")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            Form().item(open_source(tmp_path), i)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", "<i2", "<i4"])
def test_recordings_of_every_type_are_float32(tmp_path, kind):
    tone = np.sin(np.arange(40) / 5) * 0.5
    scaled = (tone * (1 if "f" in kind else 2.0 ** (8 * int(kind[-1]) - 1))).astype(kind)
    np.savez(tmp_path / "a.npz", audio=scaled, offsets=[0, 20, 40])
    found = items(tmp_path / "a.npz")
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy().ravel(), tone, atol=1e-3)


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
