"""Sound: the log-mel spectrogram against its definition, the spoken digits."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rdm
from rdm.data.mel import LogMel
from rdm.errors import InputError
from rdm.randomness import seeded
from rdm.registry import networks

DATA = Path(os.environ.get("RDM_DATA", "")) / "fsdd" / "fsdd_8khz_int16.npz"
needs_data = pytest.mark.skipif(
    "RDM_DATA" not in os.environ or not DATA.is_file(), reason=f"RDM_DATA names no folder with {DATA.name}"
)


def slow_log_mel(x: np.ndarray, rate: int, window: int, hop: int, bands: int, floor: float) -> np.ndarray:
    """Bands by frames from the definition: loops over frames, frequencies and bands; HTK's formula for mels."""
    frames = 1 + math.ceil(max(len(x) - window, 0) / hop)
    x = np.concatenate([x, np.zeros(window + (frames - 1) * hop - len(x))])
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * k / window) for k in range(window)])
    top = 1127 * math.log(1 + rate / 2 / 700)  # the same scale in natural logarithms, to four digits
    top *= (2595 / math.log(10)) / 1127
    edges = [700 * (10 ** (top * i / (bands + 1) / 2595) - 1) for i in range(bands + 2)]
    levels = np.zeros((bands, frames))
    for t in range(frames):
        frame = x[t * hop : t * hop + window] * hann
        for f in range(window // 2 + 1):
            wave = np.exp(-2j * np.pi * f * np.arange(window) / window)
            power = abs((frame * wave).sum() / hann.sum()) ** 2
            hertz = f * rate / window
            for b in range(bands):
                left, centre, right = edges[b : b + 3]
                if left < hertz <= centre:
                    levels[b, t] += power * (hertz - left) / (centre - left)
                elif centre < hertz < right:
                    levels[b, t] += power * (right - hertz) / (right - centre)
    return np.log(levels + floor)


@pytest.mark.parametrize("samples", [1, 50, 64, 65, 200])
def test_log_mel_is_its_definition(samples):
    x = np.random.default_rng(samples).uniform(-1, 1, samples)
    got = LogMel(rate=8000, window=64, hop=24, bands=10, floor=1e-6)(torch.from_numpy(x)[None])[0]
    np.testing.assert_allclose(got.numpy(), slow_log_mel(x, 8000, 64, 24, 10, 1e-6), rtol=1e-11, atol=1e-11)
    single = LogMel(rate=8000, window=64, hop=24, bands=10, floor=1e-6)(torch.from_numpy(x).float()[None])[0]
    np.testing.assert_allclose(single.numpy(), got.numpy(), atol=2e-5)


def test_a_sine_has_a_quarter_of_its_squared_amplitude_in_its_band():
    t = torch.arange(4000, dtype=torch.float64) / 8000
    mel = LogMel(bands=24, floor=1e-12)
    levels = mel(0.5 * torch.sin(2 * math.pi * 1000 * t)[None])[0].exp()
    loudest = levels.mean(1).argmax()
    assert mel.filters[loudest, 32] > 0  # 1,000 Hz is frequency 32 of 256 samples
    torch.testing.assert_close(levels[:, 5].sum(), torch.tensor(0.25 / 4, dtype=torch.float64), rtol=0.6, atol=0)


def test_gradient_by_finite_differences():
    encode = rdm.representation("log_mel", window=32, hop=16, bands=6)
    x = torch.rand(2, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.autograd.gradcheck(encode, x.requires_grad_(), eps=1e-6, atol=1e-7, rtol=1e-5)
    silence = torch.zeros(1, 70, requires_grad=True)
    encode(silence).sum().backward()
    assert torch.isfinite(silence.grad).all()


def test_statistics_are_over_time_and_see_no_padding_but_the_last_frames():
    encode, mel = rdm.representation("log_mel"), LogMel()
    x = torch.rand(3, 1000) - 0.5
    levels = mel(x)
    assert levels.shape == (3, 40, 7)
    torch.testing.assert_close(encode(x)[:, :40], levels.mean(2))
    torch.testing.assert_close(encode(x)[:, 40:], levels.std(2, correction=0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mel(x)[:, :, :6], mel(x[:, :896]))
    assert encode(x[:, :1]).shape == (3, 80)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="of 200 mel bands hold no frequency .* fewer bands or a longer window"):
        LogMel(bands=200)
    for wrong in ({"hop": 0}, {"hop": 300}, {"high": 5000.0}, {"floor": 0.0}, {"bands": 0}):
        with pytest.raises(InputError, match="expected 1 <= hop <= window"):
            LogMel(**wrong)
    with pytest.raises(InputError, match=r"takes waveforms .* as floating-point numbers; got torch.int16"):
        rdm.representation("log_mel")(torch.zeros(2, 500, dtype=torch.int16))


@pytest.mark.parametrize("name", ["spectrogram_classifier", "waveform_classifier"])
def test_networks_take_any_length(name):
    with seeded(0):
        network = networks.build(name).eval()
    for samples in (1, 100, 8000):
        assert network(torch.rand(2, samples) - 0.5).shape == (2, 10)


@needs_data
def test_the_spoken_digits_are_the_recordings():
    train, test = rdm.dataset("spoken_digits"), rdm.dataset("spoken_digits", split="test")
    assert train.images.shape == (2700, 8000) and test.images.shape == (300, 8000)
    assert test.labels.bincount().tolist() == [30] * 10 and train.labels.bincount().tolist() == [270] * 10
    assert train.images.dtype == torch.float32 and train.images.abs().max() <= 1
    with np.load(DATA, allow_pickle=False) as stored:
        row = int(np.flatnonzero(stored["index"] < 5)[7])
        audio = stored["audio"][stored["offsets"][row] : stored["offsets"][row + 1]].astype(float) / 32768
    n = min(len(audio), 8000)
    np.testing.assert_array_equal(test.images[7, :n].numpy(), audio[:n].astype(np.float32))
    assert not test.images[7, n:].any()
    one = rdm.dataset("spoken_digits", split="all", speakers=("theo",), length=4000)
    assert one.images.shape == (500, 4000) and one.name == "spoken_digits/all/theo"
    some = rdm.dataset("spoken_digits", takes=(0, 5))
    assert torch.equal(some.images, test.images) and some.name == "spoken_digits/takes 0 to 4"
    with pytest.raises(InputError, match=r"from 0 to 50; got \(25, 51\)"):
        rdm.dataset("spoken_digits", takes=(25, 51))
    with pytest.raises(InputError, match="no speaker .* 'teo'; did you mean 'theo'"):
        rdm.dataset("spoken_digits", speakers=("teo",))


def test_absent_data_are_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("RDM_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"there is no {tmp_path}/fsdd/fsdd_8khz_int16.npz; set it"):
        rdm.dataset("spoken_digits")
    monkeypatch.delenv("RDM_DATA")
    with pytest.raises(InputError, match="RDM_DATA is not set"):
        rdm.dataset("spoken_digits")
    with pytest.raises(InputError, match="split must be 'train' or 'test' or 'all'"):
        rdm.dataset("spoken_digits", split="fresh")


def test_spectrograms_of_the_spoken_digits_are_pictures():
    found, spoken = (rdm.dataset(name, takes=(0, 2)) for name in ("spoken_digit_spectrograms", "spoken_digits"))
    assert found.images.shape == (120, 1, 32, 32) and torch.equal(found.labels, spoken.labels)
    levels = LogMel(8000, 512, 242, 32)(spoken.images[:3])[:, None]
    torch.testing.assert_close(found.images[:3], ((levels + 18.42) / 14).clamp(0, 1).float())
    assert found.images.amax() == 1 and 0.1 < found.images.mean() < 0.4


@needs_data
def test_sound_of_a_spectrogram_has_that_spectrogram():
    """Of recordings made again from their bands, the bands are those, but for what phases cannot give."""
    from experiments.spoken_digits.__main__ import sound, wav

    pictures = rdm.dataset("spoken_digit_spectrograms", takes=(0, 1)).images[:6]
    heard = sound(pictures)
    levels = LogMel(8000, 512, 242, 32)(nn.functional.pad(heard, (256, 0)).float())[:, None, :, :30]  # centred frames
    again = ((levels + 18.42) / 14).clamp(0, 1)
    loud = pictures[..., :30] > 0.3
    assert (again - pictures[..., :30])[loud].abs().mean() < 0.1
    assert len(wav(heard[0])) == 44 + 2 * heard.shape[1]
