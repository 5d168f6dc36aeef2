"""What SECURITY.md promises, each held by a real attempt: data may run nothing, connect nowhere, write nowhere else."""

import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from rdm.__main__ import main
from rdm.source import FORMATS, BrokenItem, Form, decode, open_source
from rdm.sources.image_folder import PICTURES

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def picture(seed: int = 0, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A working folder of its own; what an attempt would leave is PWNED in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(at):
    (at / "s").mkdir()
    for i in range(24):
        (at / "s" / f"{i:03}.png").write_bytes(picture(i))
    return at / "s"


def program(at, monkeypatch, name: str) -> None:
    """Put a program of this name before all others of PATH; it leaves PWNED."""
    (at / "bin").mkdir()
    (at / "bin" / name).write_text(f"#!/bin/sh\necho 10.0; touch {at}/PWNED\n")
    (at / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{at}/bin:/usr/bin:/bin")


def test_a_picture_starts_no_program(pictures, at, monkeypatch, capsys):
    program(at, monkeypatch, "gs")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (pictures / "000.png").write_bytes(EPS)
    assert main(["reference", "s", "--battery", "untrained", "--out", "r.safetensors"]) == 2
    assert "000.png cannot be read" in capsys.readouterr().err and not (at / "PWNED").exists()


def test_every_suffix_that_is_read_has_its_format():
    registered = Image.registered_extensions()
    assert {registered[suffix] for suffix in PICTURES} == set(FORMATS)


def test_pictures_beyond_the_stated_size_are_refused_before_they_are_decoded(tmp_path):
    side = 9500  # squared: above LARGEST, below what Pillow itself refuses
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    (tmp_path / "big.png").write_bytes(bomb.getvalue())
    with pytest.raises(BrokenItem, match="big.png cannot be read"):
        Form().item(open_source(tmp_path), 0)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="89,478,485 pixels"):
        decode(bomb.getvalue())
