"""Sources: every form gives the same items; conversions are as documented; wrong data is one line."""

import gzip
import io
import json
import math
import os
import random
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

import rdm
from rdm.__main__ import main
from rdm.data import sound
from rdm.data.items import first_item
from rdm.data.sound import resample
from rdm.data.source import BrokenItem, Form, Given, centre_crop, hashed, open_source
from rdm.errors import CorruptFileError, InputError

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def items(path: Path, **form) -> torch.Tensor:
    source, form = open_source(path), Form(**form)
    first = first_item(source, form)
    return torch.stack([form.item(source, i, first).value for i in range(len(source))])


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


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
    for i, message in ((2, "2.wav: floats must lie in .-1, 1.; got 9 to 9"), (3, "3.wav: NaN or infinity in 50")):
        with pytest.raises(InputError, match=message):
            Form().item(open_source(tmp_path), i)
    with pytest.warns(UserWarning, match="files of 16,000 samples a second are resampled to 8,000, 1.wav's"):
        assert len(Form().item(open_source(tmp_path), 4).value) == 25


@pytest.mark.parametrize("old, new", [(44100, 16000), (8000, 48000), (16000, 16001), (48000, 8000)])
def test_resampled_tones_are_those_of_the_new_rate_and_what_it_cannot_hold_is_gone(old, new):
    low, high, seconds = 0.3 * min(old, new), 0.55 * min(old, new), 0.1
    before, after = np.arange(int(seconds * old)) / old, np.arange(math.ceil(int(seconds * old) * new / old)) / new
    found = resample(np.sin(2 * np.pi * low * before), old, new)
    assert found.shape == after.shape
    inner = slice(len(after) // 4, -len(after) // 4)
    assert np.abs(found - np.sin(2 * np.pi * low * after))[inner].max() < 1e-3
    weights = sum(kernel.nbytes for kernel in sound._kernels(old // math.gcd(old, new), new // math.gcd(old, new))[1])
    assert weights <= 8 * 16001 * (256 + 70)  # 2 GB for 16,000 and 16,001 as one product
    if new < old:
        assert np.abs(resample(np.sin(2 * np.pi * high * before), old, new))[inner].max() < 1e-3


def test_flac_and_others_are_read_by_soundfile(tmp_path):
    library = pytest.importorskip("soundfile")
    stereo = np.random.default_rng(0).normal(size=(400, 2)).clip(-4, 4) / 5
    for folder, name, kind in (("a", "x.flac", "PCM_24"), ("b", "x.aiff", "PCM_16"), ("c", "x.wav", "PCM_24")):
        (tmp_path / folder).mkdir()
        library.write(tmp_path / folder / name, stereo, 22050, subtype=kind)
        source = open_source(tmp_path / folder)
        assert source.rate == 22050 and source.kind == "audio"
        assert np.abs(source.read(0) - stereo.mean(1)).max() < (2**-14 if kind == "PCM_16" else 2**-22)
    (tmp_path / "a" / "y.flac").write_bytes(b"fLaC")
    with pytest.raises(BrokenItem, match="y.flac cannot be read"):
        Form().item(open_source(tmp_path / "a"), 1)


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
    with pytest.raises(InputError, match="a.png has 3 channels, expected 1; give the reference --channels 3"):
        items(tmp_path / "mixed", channels=1)


@pytest.mark.parametrize("form", ["folder", "tar", "encoded"])
def test_grey_beside_colour_is_the_same_in_any_order(tmp_path, form):
    """All modes as three channels wherever a colour picture comes, as one where none does."""
    grey = PICTURES[0, :, :, 0]
    clear = np.dstack([grey, np.full(grey.shape, 255, np.uint8)])
    all_grey = [png(grey), png(clear, "LA"), png((grey > 99) * np.uint8(255), "1"), png(grey.astype(np.uint16) * 257)]
    for colour in range(5):
        files = [*all_grey[:colour], png(PICTURES[0]), *all_grey[colour:]] if colour < 4 else all_grey
        path = tmp_path / f"{colour}.{'tar' if form == 'tar' else 'npz' if form == 'encoded' else 'd'}"
        named = {f"{i}.png": data for i, data in enumerate(files)}
        if form == "folder":
            folder_of(path, named)
        elif form == "tar":
            tar_of(path, named)
        else:
            offsets = np.cumsum([0, *map(len, files)])
            np.savez(path, data=np.frombuffer(b"".join(files), np.uint8), offsets=offsets)
        found = items(path)
        assert found.shape == (len(files), 3 if colour < 4 else 1, 10, 12)
        plain, alpha, _, deep = found[[i for i in range(len(files)) if i != colour]] if colour < 4 else found
        torch.testing.assert_close(plain[0], torch.from_numpy(grey.copy()) / 255)
        assert torch.equal(plain, alpha) and torch.equal(plain, deep)


def test_pictures_of_32_bits_are_refused(tmp_path):
    deep = (np.arange(256, dtype=np.int32) * 8_000_000).reshape(16, 16)
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep).save(tmp_path / "deep" / "a.tif")
    np.save(tmp_path / "deep.npy", deep[None])
    np.save(tmp_path / "wild.npy", np.full((2, 8, 8), 255.0))
    for size in (None, 8):
        for name in ("deep", "deep.npy"):
            with pytest.raises(InputError, match="pictures must be 8-bit, 16-bit or float in .0, 1.; got int32"):
                items(tmp_path / name, size=size)
        with pytest.raises(InputError, match="floats must lie in .0, 1.; got 255 to 255"):
            items(tmp_path / "wild.npy", size=size)
    np.save(tmp_path / "white.npy", np.full((1, 8, 8), 1 + 2.4e-7, np.float32))
    assert items(tmp_path / "white.npy").max() == 1, "what a resize rounds out of the range"


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


def test_wrong_data_is_one_line(tmp_path, capsys):
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
    (tmp_path / "a.doc").write_text("no")
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 broken")
    for name, message in {
        "nowhere": "expected data at .*; there is none",
        "empty": "is an empty folder; expected pictures or wav files in it",
        "a.doc": "has no known form; `rdm list sources` says what is read:",
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
        Form().item(open_source(tmp_path / "broken"), 0)
    assert main(["reference", str(tmp_path / "a.doc"), "--out", str(tmp_path / "r.safetensors")]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("rdm: ") and first.endswith("is read:") and len(lines) == len(rdm.names("sources"))
    assert lines[0] == "  .csv or .tsv with a head line, or a .parquet, of numbers" and max(map(len, lines)) < 120


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


def said(path: Path) -> tuple[list[str], str]:
    """Names of the items, and the one line about what is left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_source(path)
    assert len(caught) <= 1
    return [source.name(i) for i in range(len(source))], str(caught[0].message) if caught else ""


def test_what_a_folder_leaves_out_is_said(tmp_path):
    picture = png(PICTURES[0])
    folder_of(tmp_path / "store/b", {"1.png": picture, "deep/2.png": picture})
    data = folder_of(tmp_path / "data", {"a/0.png": picture, "a/3.JFIF": picture})
    (data / "b").symlink_to("../store/b")
    assert said(data) == (["a/0.png", "a/3.JFIF", "b/1.png", "b/deep/2.png"], "")
    assert [open_source(data).label(i) for i in range(4)] == [0, 0, 1, 1]
    (tmp_path / "links").mkdir()
    (tmp_path / "links/only").symlink_to("../store/b")
    assert said(tmp_path / "links") == (["only/1.png", "only/deep/2.png"], "")
    (tmp_path / "links/only").unlink()
    (data / "up").symlink_to(tmp_path)
    (data / "a/lost.png").symlink_to("nowhere.png")
    folder_of(data, {"a/x.flac": b"", "a/y.flac": b"", "README": b"", "._0.png": b"", ".git/0.png": b""})
    os.mkfifo(data / "pipe.png")
    names, line = said(data)
    assert names[:4] == ["a/0.png", "a/3.JFIF", "b/1.png", "b/deep/2.png"]
    assert line == (
        f"{data}: left out: 1 of broken links (a/lost.png); 1 of no regular files (pipe.png); 1 without a suffix "
        "(README); 2 hidden (._0.png, ...); 2 of links to folders that are read already (up/data, ...); 2 of suffix "
        "'.flac' (a/x.flac, ...)"
    )


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path):
    raw = os.fsencode(tmp_path) + b"/q\xe9.png"
    Path(os.fsdecode(raw)).write_bytes(png(PICTURES[0]))
    assert items(tmp_path).shape == (1, 3, 10, 12)
    source = open_source(tmp_path)
    assert hashed(source.name(0)) != hashed("q.png")
    Path(os.fsdecode(raw)).write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"q\\udce9.png cannot be read \(it is damaged, or none of PNG, JPEG"
    ) as caught:
        first_item(source, Form())
    assert str(caught.value).isprintable()


def test_the_form_of_a_folder_is_that_of_most_files(tmp_path):
    sound = wav(np.zeros((50, 1), np.int16))
    folder_of(tmp_path / "wav", {f"{i}.wav": sound for i in range(3)} | {"cover.png": png(PICTURES[0])})
    assert said(tmp_path / "wav")[1].endswith("wav: left out: 1 of suffix '.png' (cover.png)")
    folder_of(tmp_path / "png", {f"{i}.png": png(PICTURES[0]) for i in range(3)} | {"song.wav": sound})
    assert said(tmp_path / "png")[1].endswith("png: left out: 1 of suffix '.wav' (song.wav)")
    folder_of(tmp_path / "even", {"0.wav": sound, "0.png": png(PICTURES[0])})
    folder_of(tmp_path / "midi", {"0.mid": sound, "1.mid": sound})
    for name, held in (("even", "1 .png, 1 .wav"), ("midi", "2 .mid")):
        with pytest.raises(InputError, match=f"{name} has no known form; it holds {held}; `rdm list"):
            open_source(tmp_path / name)


ONE = png(PICTURES[0])


@pytest.mark.parametrize(
    ("members", "names", "line"),
    [
        ({"0.png": ONE, "0.mask.png": ONE}, ["0.png"], "1 beside another picture of their key (0.mask.png)"),
        ({"./a/0.png": ONE, "./a/._0.png": b""}, ["./a/0.png"], "1 hidden (./a/._0.png)"),
        ({"0.png": ONE, "0.txt": b"", "0.meta.json": b"["}, ["0.png"],
         "1 of suffix '.meta.json' (0.meta.json); 1 of suffix '.txt' (0.txt)"),
        ({"0.left.png": ONE, "1.left.png": ONE}, ["0.left.png", "1.left.png"], ""),
        ({"q\udce9.png": ONE, "0.PNG": ONE}, ["0.PNG", "q\udce9.png"], ""),
    ],
)  # fmt: skip
def test_what_a_tar_leaves_out_is_said(tmp_path, members, names, line):
    path = tar_of(tmp_path / "t.tar", members)
    assert said(path) == (names, f"{path}: left out: {line}" if line else "")
    assert len(items_of(path)) == len(names)


def items_of(path: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return items(path)


def header_at(number: int) -> int:
    """Where the header of a member lies, in a tar of equal pictures."""
    return number * (512 + -(-len(ONE) // 512) * 512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[: header_at(6)], "no header and no end at byte"),
        (lambda d: d[: header_at(6)] + b"\x55" * 512 + d[header_at(6) + 512 :], "no header and no end at byte"),
        (lambda d: d[: header_at(6) + 100], "no header and no end at byte"),
        (lambda d: d[: header_at(6) + 600], "unexpected end of data"),
        (lambda d: b"\x55" * 512 + d[512:], "cannot be read"),
        (lambda d: d + d, "there is more after its end .* several archives end to end"),
        (lambda d: b"", "cannot be read"),
        (gzip.compress, "is compressed by gzip; .* decompress it first"),
    ],
)
def test_a_damaged_tar_is_refused_whole(tmp_path, change, message):
    data = tar_of(tmp_path / "t.tar", {f"{i}.png": ONE for i in range(9)}).read_bytes()
    assert len(open_source(tmp_path / "t.tar")) == 9
    (tmp_path / "t.tar").write_bytes(change(data))
    with pytest.raises(InputError, match=f"t.tar.*{message}") as caught:
        open_source(tmp_path / "t.tar")
    assert "\n" not in str(caught.value)
    (tmp_path / "t.tar").write_bytes(data[: header_at(9) + 512])
    assert len(open_source(tmp_path / "t.tar")) == 9, "one block of zeros is an end"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", ONE)] * 4, "two members are called 'a.png'; names must differ"),
        ([("0.image.png", ONE), ("0.mask.png", ONE)], "0.image.png and 0.mask.png are both of key '0'"),
        ([("0.png", ONE), ("0.cls", b"1"), ("0.json", b'{"label": 2}')], "0.json: class 2, and 1 elsewhere"),
        ([("0.png", ONE), ("0.cls", b"9" * 23)], "0.cls: expected a whole number of 64 bits; got 999"),
        ([("0.png", ONE), ("0.cls", b"9" * 9999)], "0.cls is no class .ValueError."),
        ([("0.png", ONE), ("0.cls", b"cat\n")], "0.cls is no class .ValueError.; 'cat"),
        *(
            ([("0.png", ONE), ("0.json", text)], f"0.json{message}")
            for text, message in (
                (b'{"label": 1e999}', ": expected a whole number of 64 bits; got inf"),
                (b'{"label": NaN}', ": expected a whole number of 64 bits; got nan"),
                (b'{"label": 1.5}', ": expected a whole number of 64 bits; got 1.5"),
                (b'{"label": "cat"}', ": expected a whole number of 64 bits; got 'cat'"),
                (b'{"label": true}', ": expected a whole number of 64 bits; got True"),
                (b'{"label":' + b"[" * 10**5, " is no JSON .RecursionError."),
                (b'{"label"', " is no JSON .JSONDecodeError."),
            )
        ),
    ],
)
def test_a_tar_of_unclear_names_or_classes_is_refused(tmp_path, members, message):
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=f"t.tar: {message}") as caught:
        open_source(tmp_path / "t.tar")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_large_sparse_and_linked_members_of_a_tar(tmp_path):
    def sparse(name: str) -> bytes:
        info = tarfile.TarInfo(name)
        info.type = tarfile.GNUTYPE_SPARSE
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[483:495] = (10**12).to_bytes(12, "big").replace(b"\0", b"\x80", 1)  # the real size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    whole = tar_of(tmp_path / "t.tar", {"0.png": ONE}).read_bytes()
    (tmp_path / "t.tar").write_bytes(sparse("1.png") + whole)
    assert said(tmp_path / "t.tar") == (["0.png"], f"{tmp_path}/t.tar: left out: 1 of sparse files (1.png)")
    (tmp_path / "t.tar").write_bytes(sparse("0.cls") + whole)
    names, line = said(tmp_path / "t.tar")
    assert names == ["0.png"] and line.endswith("1 of sparse files (0.cls)")
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name, kind, size in (("0.png", tarfile.REGTYPE, len(ONE)), ("1.png", tarfile.SYMTYPE, 0)):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = size, kind, "../../etc/passwd"
            file.addfile(info, io.BytesIO(ONE))
    assert said(tmp_path / "t.tar")[1].endswith("1 of links, devices and other kinds (1.png)")


def test_arrays_that_are_not_read_are_said_or_refused(tmp_path):
    np.savez(tmp_path / "two.npz", real=PICTURES, fake=PICTURES)
    with pytest.raises(
        InputError, match="several arrays of pictures: 'real', 'fake'; .* call the one to read 'images'"
    ):
        open_source(tmp_path / "two.npz")
    np.savez(tmp_path / "named.npz", real=PICTURES[:2], images=PICTURES, rows=np.zeros((6, 2)), labels=np.arange(6))
    names, line = said(tmp_path / "named.npz")
    assert len(names) == 6
    assert line.endswith("left out: array 'real' of shape (2, 10, 12, 3), array 'rows' of shape (6, 2)")
    for name in ("facebook/dinov2", "../a/b", "[/x]", "", "a\x1b[31m"):
        np.savez(tmp_path / "rows.npz", **{name: np.zeros((4, 3))})
        with pytest.raises(InputError, match="tables and files call features by this name; expected one without"):
            open_source(tmp_path / "rows.npz")
    for rows in (np.zeros((4, 3), complex), np.full((4, 3), "a")):
        np.savez(tmp_path / "rows.npz", rows=rows)
        with pytest.raises(InputError, match=f"features 'rows' must be real numbers; got {rows.dtype}"):
            open_source(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(5), r"expected 6 labels, one an item; got shape \(5,\)"),
        (np.zeros((6, 2), int), r"expected 6 labels, one an item; got shape \(6, 2\)"),
        (np.array(3), r"expected 6 labels, one an item; got shape \(\)"),
        (np.array(list("abcdef")), "labels must be whole numbers; got <U1"),
        (np.zeros(6, complex), "labels must be whole numbers; got complex128"),
        (np.array([0, 1, np.nan, 3, 4, 5]), "label 2 is no whole number of 64 bits; got nan"),
        (np.full(6, 1e30), "label 0 is no whole number of 64 bits; got 1e.30"),
        (np.full(6, 0.5), "label 0 is no whole number of 64 bits; got 0.5"),
        (np.full(6, 2**63, np.uint64), "label 0 is no whole number of 64 bits; got 9223372036854775808"),
        (np.arange(6, dtype=np.float32), None),
        (np.arange(6, dtype=np.uint64)[:, None], None),
    ],
)
def test_labels_of_any_form_are_classes_or_refused(tmp_path, labels, message):
    encoded = np.frombuffer(ONE * 6, np.uint8)
    np.savez(tmp_path / "p.npz", images=PICTURES, labels=labels)
    np.savez(tmp_path / "e.npz", data=encoded, offsets=np.arange(7) * len(ONE), label=labels)
    np.savez(tmp_path / "a.npz", audio=np.zeros(12, np.int16), offsets=np.arange(7) * 2, labels=labels)
    np.savez(tmp_path / "f.npz", rows=np.zeros((6, 2)), y=labels)
    for name in "peaf":
        source = open_source(tmp_path / f"{name}.npz")
        if message is None:
            assert [Form().item(source, i).label for i in range(6)] == list(range(6))
        else:
            with pytest.raises(InputError, match=f"{name}.npz: '(labels|label|y)': {message}"):
                first_item(source, Form())


@pytest.mark.parametrize(
    "offsets",
    [[], 0, [0.0, 4.0], [[0, 4]], [0, 3], [1, 4], [0, 3, 2, 4], [0, 9], [0, 2**63], ["0", "4"]],
)
@pytest.mark.parametrize("content", ["data", "audio"])
def test_offsets_that_are_none_are_refused(tmp_path, content, offsets):
    kind = np.uint8 if content == "data" else np.int16
    np.savez(tmp_path / "a.npz", **{content: np.zeros(4, kind), "offsets": np.array(offsets)})
    with pytest.raises(InputError, match=f'"offsets" must be n . 1 whole numbers that rise from 0 to 4, .*{content!r}'):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("dimensions", "shape", "message"),
    [
        (0, [], "is no idx file of bytes in 3 dimensions"),
        (1, [9], "is no idx file of bytes in 3 dimensions"),
        (2, [3, 3], "is no idx file of bytes in 3 dimensions"),
        (255, [1] * 255, "is no idx file of bytes in 3 dimensions"),
        (3, [-1, -3, 3], "is no idx file of bytes in 3 dimensions"),
        (3, [2**31 - 1] * 3, "more than this machine's memory"),
        (3, [1, 3, 2], "its size is not what its header says"),
        (3, [1, 3, 4], "its size is not what its header says"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_of_other_forms_are_refused(tmp_path, dimensions, shape, message, packed):
    data = bytes([0, 0, 8, dimensions]) + struct.pack(f">{len(shape)}i", *shape) + bytes(9)
    path = tmp_path / ("idx3-ubyte.gz" if packed else "idx3-ubyte")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputError, match=message):
        open_source(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b"3",
        b'{"a": []}',
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}}',
        b"[" * 9999,
    ],
)
def test_safetensors_of_other_forms_are_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    for size in (len(header), 2**63):
        path.write_bytes(size.to_bytes(8, "little") + header + bytes(16))
        with pytest.raises(CorruptFileError, match="a.safetensors cannot be read") as caught:
            open_source(path)
        assert "\n" not in str(caught.value)


def test_arrays_that_memory_or_trust_cannot_hold_are_refused(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 1)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("images.npy", head.getvalue() + bytes(99))
    with pytest.raises(InputError, match="bomb.npz is of 70,368,744,177,664 bytes, more than this machine's memory"):
        open_source(tmp_path / "bomb.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", images=np.array([{}] * 8).reshape(2, 2, 2), allow_pickle=True)
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(CorruptFileError, match="it holds Python objects, which are never loaded"):
            open_source(tmp_path / name)
    torch_save_file({"images": torch.full((2, 3, 4, 4), 0.5, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    assert items(tmp_path / "b.safetensors").mean() == 0.5


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, Path]:
    """A file of each form, by name."""
    at = tmp_path_factory.mktemp("whole")
    encoded = [png(p) for p in PICTURES]
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(at / "e.npz", data=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets, labels=np.arange(6))
    np.savez_compressed(at / "p.npz", images=PICTURES, labels=np.arange(6))
    np.save(at / "p.npy", PICTURES)
    np.savez(at / "a.npz", audio=np.arange(40, dtype=np.int16), offsets=np.arange(5) * 10, rate=8000)
    save_file({"images": PICTURES.astype(np.float32) / 255}, at / "p.safetensors")
    classes = {f"{i}.cls": b"%d" % i for i in range(6)}
    tar_of(at / "t.tar", {f"{i}.png": data for i, data in enumerate(encoded)} | classes)
    idx = struct.pack(">4B3i", 0, 0, 8, 3, 6, 10, 12) + PICTURES[..., 0].tobytes()
    folder_of(at, {"idx3-ubyte": idx, "idx3-ubyte.gz": gzip.compress(idx), "i/0.png": encoded[0]})
    folder_of(at, {"w/0.wav": wav(np.zeros((50, 2), np.int16), extensible=True)})
    return {path.relative_to(at).as_posix(): path for path in at.rglob("*") if path.is_file()}


def damaged(data: bytes, draw: random.Random) -> bytes:
    changed, at = bytearray(data), draw.randrange(min(len(data), draw.choice((600, len(data)))))
    how = draw.choice(("flip", "cut", "zero", "fill", "insert"))
    if how == "cut":
        return data[:at]
    if how == "flip":
        changed[at] ^= 1 << draw.randrange(8)
    elif how == "insert":
        changed[at:at] = draw.randbytes(5)
    else:
        changed[at : at + 8] = (b"\0" if how == "zero" else b"\xff") * len(changed[at : at + 8])
    return bytes(changed)


@pytest.mark.parametrize(
    "name",
    "e.npz p.npz p.npy a.npz p.safetensors t.tar idx3-ubyte idx3-ubyte.gz i/0.png w/0.wav".split(),
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_damaged_file_is_one_line_or_read(tmp_path, whole_files, name):
    """120 changes of each form, half of them in its first 600 bytes: nothing but an `InputError` comes out."""
    data, draw = whole_files[name].read_bytes(), random.Random(name)
    refused = 0
    for _ in range(120):
        folder_of(tmp_path, {name: damaged(data, draw)})
        try:
            assert torch.isfinite(items(tmp_path / name.split("/")[0], size=8)).all()
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            refused += 1
    assert refused > 20
