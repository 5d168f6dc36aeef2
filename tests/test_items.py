"""Items as the commands read them: one sampling rate, worker processes, what is said of what cannot be read."""

import numpy as np
import pytest

import rdm
from rdm.__main__ import main
from rdm.reference_file import ReferenceFile
from rdm.registry import batteries


@pytest.fixture
def ears():
    with batteries.temporarily():
        batteries.register("ears")(lambda: rdm.Battery((rdm.representation("log_mel", rate=16000),)))
        yield


def test_sound_of_another_rate_is_refused(tmp_path, capsys, ears):
    """The same pitches at three rates, which sound alike at theirs and are other numbers."""
    tones = 300 + 40 * np.arange(24)[:, None]
    for rate in (16000, 8000):
        sound = (0.4 * np.sin(2 * np.pi * tones * np.arange(rate // 40) / rate) * 32767).astype(np.int16)
        offsets = np.arange(25) * sound.shape[1]
        np.savez(tmp_path / f"{rate}.npz", audio=sound.ravel(), offsets=offsets, rate=rate)
        np.savez(tmp_path / f"{rate}-silent.npz", audio=sound.ravel(), offsets=offsets)
    make = ["reference", "--battery", "ears", "--size", "400", "--out", str(tmp_path / "r.safetensors")]
    right, wrong, unsaid = (str(tmp_path / f"{name}.npz") for name in ("16000", "8000", "8000-silent"))
    assert main([*make, wrong]) == 2
    line = "8000.npz has 8,000 samples a second and encoder 'log_mel' 16,000; resample one to the other"
    assert line in capsys.readouterr().err
    assert main([*make, right, "--fresh", wrong]) == 2
    assert "16000.npz has 16,000 samples a second and" in capsys.readouterr().err
    assert main([*make, right, "--split", "0.3"]) == 0
    file = ReferenceFile.load(tmp_path / "r.safetensors")
    assert file.description["form"]["rate"] == 16000
    for samples, status in ((right, 0), (unsaid, 0), (wrong, 2)):
        capsys.readouterr()
        assert main(["evaluate", samples, "--reference", str(tmp_path / "r.safetensors"), "--metrics", "sw"]) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "8000.npz has 8,000 samples a second and" in said and "resample" in said
