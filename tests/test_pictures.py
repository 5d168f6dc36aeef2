"""Picture files: every format that Pillow reads by itself and writes here, and every mode of each."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.api import decode, is_grey
from rdm.data.pictures import FORMATS, UNMARKED
from rdm.data.source import open_source
from rdm.data.sources._files import PICTURES

Image.init()
LEFT_OUT = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IMT", "IPTC", "IM"}  # programs, the system's, stubs
WRITTEN = {f: e for e, f in Image.registered_extensions().items() if f in Image.SAVE and f in {*FORMATS, "TGA"}}
MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB I;16 I;16B F".split()
COLOURS = np.stack(np.meshgrid(np.linspace(0, 255, 16), np.linspace(40, 200, 16)), 2).astype(np.uint8)
PICTURE = Image.fromarray(np.concatenate([COLOURS, COLOURS[:, ::-1, :1]], 2))


def test_formats_are_all_of_pillow_s_but_those_that_are_left_out():
    known = {*FORMATS, *UNMARKED.values(), *LEFT_OUT}
    assert set(Image.OPEN) <= known, set(Image.OPEN) - known
    suffixes = {e for e, f in Image.registered_extensions().items() if f in {*FORMATS, *UNMARKED.values()}}
    assert suffixes <= PICTURES, suffixes - PICTURES


@pytest.mark.parametrize("kind, suffix", sorted(WRITTEN.items()))
def test_every_format_is_the_picture_that_pillow_reads(tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix}"
    for mode in ("RGB", "P", "1"):  # BLP keeps palettes alone, XBM and MSP black and white
        with contextlib.suppress(OSError, ValueError):
            PICTURE.convert(mode).save(path, kind)
            break
    with Image.open(path) as there:
        expected = np.array(there.convert("RGB"))
    found = decode(path)
    found = found[:, :, None] if found.ndim == 2 else found
    assert (np.broadcast_to(found, expected.shape) == expected).all()
    assert open_source(tmp_path).read(0).shape[:2] == (there.height, there.width)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read(tmp_path, mode, monkeypatch):
    """From memory, since hardly a format keeps all of them."""
    if mode.startswith("I;16"):
        kind = "<u2" if mode == "I;16" else ">u2"
        picture = Image.frombytes(mode, (16, 16), (np.arange(256) * 200).astype(kind).tobytes())
    elif mode == "LAB":
        picture = Image.merge("LAB", [Image.new("L", (16, 16), v) for v in (137, 128, 128)])  # grey of lightness 53.7
    else:
        picture = PICTURE.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)).convert(mode)
    monkeypatch.setattr("rdm.data.pictures._opened", lambda data: picture)
    found = decode(Path("x.png"))
    if mode == "LAB":
        assert np.abs(found.astype(int) - 128).max() <= 3 and found.shape == (16, 16, 3)
    elif mode.startswith("I;16"):
        assert found.dtype == np.uint16 and (found.ravel() == np.arange(256) * 200).all()
    else:
        reference = np.array(PICTURE.convert("L" if mode in ("L", "LA", "La", "F") else "RGB"), float)
        tolerance = {"1": 255, "P": 70, "PA": 70, "YCbCr": 4, "HSV": 8}.get(mode, 0.5)
        shown = found.astype(float) if found.ndim == reference.ndim else found[:, :, None].astype(float)
        assert np.abs(shown - reference).max() <= tolerance, mode
    assert is_grey(Path("x.png")) == (mode in ("1", "L", "LA", "La", "I;16", "I;16B", "F"))


def test_what_has_no_mark_is_read_by_its_name_alone(tmp_path):
    PICTURE.save(tmp_path / "x.tga")
    assert decode(tmp_path / "x.tga").shape == (16, 16, 3)
    with pytest.raises(ValueError, match="damaged, or none of PNG"):
        decode((tmp_path / "x.tga").read_bytes())
    PICTURE.save(tmp_path / "x.eps")
    (tmp_path / "y.png").write_bytes((tmp_path / "x.eps").read_bytes())
    with pytest.raises(ValueError, match="damaged, or none of PNG"):
        decode(tmp_path / "y.png")
