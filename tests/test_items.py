"""Items as the commands read them: one sampling rate, worker processes, what is said of what cannot be read."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rdm
from rdm.__main__ import main
from rdm.data.items import Items, first_item
from rdm.data.source import Form, Given
from rdm.references.file import Reference
from rdm.registry import batteries


@pytest.fixture
def ears():
    with batteries.temporarily():
        batteries.register("ears")(lambda: rdm.Battery((rdm.representation("log_mel", rate=16000),)))
        yield


def test_sound_of_another_rate_is_resampled_which_is_said(tmp_path, capsys, ears):
    """The same tones at two rates, which sound alike at theirs and are other numbers."""
    tones = 300 + 40 * np.arange(24)[:, None]
    for rate in (16000, 8000):
        sound = (0.4 * np.sin(2 * np.pi * tones * np.arange(rate // 20) / rate) * 32767).astype(np.int16)
        offsets = np.arange(25) * sound.shape[1]
        np.savez(tmp_path / f"{rate}.npz", audio=sound.ravel(), offsets=offsets, rate=rate)
        np.savez(tmp_path / f"{rate}-silent.npz", audio=sound.ravel(), offsets=offsets)
    made = str(tmp_path / "r.safetensors")
    make = ["reference", "--battery", "ears", "--size", "800", "--split", "0.3", "--out", made]
    right, wrong, unsaid = (str(tmp_path / f"{name}.npz") for name in ("16000", "8000", "8000-silent"))
    assert main([*make, wrong]) == 0
    assert "8000.npz: resampled from 8,000 to 16,000 samples a second" in capsys.readouterr().err
    file = Reference.load(tmp_path / "r.safetensors")
    assert file.description["form"]["rate"] == 16000 and file.description["form"]["shape"] == [800]
    values, judged = {}, ["--reference", made, "--metrics", "sw", "--json", str(tmp_path / "j.json")]
    for samples in (right, wrong, unsaid):
        assert main(["evaluate", samples, *judged]) == 0
        values[samples] = json.loads((tmp_path / "j.json").read_text())["metrics"]["sw/log_mel"]["value"]
    assert capsys.readouterr().err.count("resampled") == 1
    assert abs(values[right] - values[wrong]) < 0.05 * values[unsaid], "an octave too high where nothing says the rate"


@pytest.mark.filterwarnings("always:.*left out")
def test_what_is_left_out_or_damaged_reaches_the_user(tmp_path, capsys):
    """Grey pictures beside colour are judged as colour; a warning, or one line with status 2."""
    draw = np.random.default_rng(0)
    for i in range(40):
        for side in ("real", "made"):
            (tmp_path / side).mkdir(exist_ok=True)
            picture = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            grey = side == "made" and i % 2 == 0
            Image.fromarray(picture[:, :, 0] if grey else picture).save(tmp_path / side / f"{i:02}.png")
    (tmp_path / "made" / "40.flac").write_bytes(b"")
    make = ["reference", "--battery", "untrained", "--out", str(tmp_path / "r.safetensors")]
    assert main([*make, str(tmp_path / "real")]) == 0
    capsys.readouterr()
    command = ["evaluate", str(tmp_path / "made"), "--reference", str(tmp_path / "r.safetensors"), "--metrics", "sw"]
    assert main(command) == 0
    assert f"rdm: warning: {tmp_path}/made: left out: 1 of suffix '.flac' (40.flac)\n" in capsys.readouterr().err
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for path in sorted((tmp_path / "real").iterdir()):
            file.add(path, path.name)
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: 2 * 512 * 20])  # at the header of the twenty-first
    assert main([*make, str(tmp_path / "t.tar")]) == 2
    said = capsys.readouterr().err
    assert "t.tar: no header and no end at byte 20,480; it is truncated or altered" in said and said.count("\n") == 1


def items_of(source: Given) -> Items:
    return Items([(source, False)], Form(), first_item(source, Form()), size=8)


def values(kind: str) -> torch.Tensor:
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 2**16, (20, 3, 5, 4)).astype(np.uint16)
    if kind == "16-bit":
        return torch.from_numpy(pictures)
    return torch.from_numpy((pictures % 256).astype(np.uint8) if kind == "8-bit" else pictures / 65535)


@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "float", "sound"])
def test_workers_send_the_same_bits_and_share_no_memory(kind):
    given = Given(values(kind)) if kind != "sound" else Given(values("float").flatten(1), kind="audio")
    items = items_of(given)
    with items.read(range(3), workers=0) as batches:
        expected = list(batches)
    with items.read([2, 0, 1], workers=2) as batches:
        found = list(batches)
    for batch in found:
        other = expected[batch.number]
        for mine, theirs in zip(batch, other, strict=True):
            assert torch.equal(mine, theirs) if isinstance(theirs, torch.Tensor) else mine == theirs  # type: ignore
        assert not batch.values.is_shared() and batch.values.dtype == torch.float32
    assert [batch.number for batch in found] == [2, 0, 1] and sum(len(batch.values) for batch in found) == 20


@dataclass(frozen=True)
class Deadly(Given):
    """Item 13 ends the process that reads it, unless that is the parent."""

    parent: int = 0

    def read(self, i: int) -> np.ndarray:
        if i == 13 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i)


def test_a_killed_worker_names_what_it_was_reading():
    items = items_of(Deadly(values("8-bit"), path=Path("set"), parent=os.getpid()))
    with pytest.raises(RuntimeError, match="a reading process was killed at set: 13; .* --workers, or 0") as caught:
        with items.read(range(3), workers=2) as batches:
            list(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="needs a mount namespace"
)
def test_a_full_shared_memory_does_not_matter(tmp_path):
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).random((200, 3, 16, 16), np.float32))
    out = tmp_path / "r.safetensors"
    command = f"{sys.executable} -m rdm reference {tmp_path}/pictures.npy --battery untrained --workers 2 --out {out}"
    subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64k tmpfs /dev/shm && {command} --batch 100"],
        check=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert Reference.load(out).description["n"] > 100
