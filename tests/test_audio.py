"""Sound: the log-mel spectrogram against its definition, the spoken digits."""

import json
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
from rdm.trust import require

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


@pytest.fixture(scope="module")
def transformers():
    try:
        return require("transformers", extra="text", owner="the tests")
    except InputError as error:
        pytest.skip(str(error))


def heard(n: int = 3, samples: int = 5000) -> torch.Tensor:
    """Sound that falls silent, of another loudness each."""
    noise = torch.rand(n, samples, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return noise * torch.linspace(0.9, 0.01, samples) * torch.tensor([1.0, 0.1, 0.5])[:n, None]


def saved(transformers, kind: str, folder, said: dict, **arguments):
    """A tiny model with random weights in a folder, as the hub has them, and transformers' own module."""
    torch.manual_seed(1)
    network = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **arguments)).eval()
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return network


def example(kind: str) -> dict:
    entries = rdm.registry.representations["huggingface_audio"].examples
    return next(dict(entry["arguments"]) for entry in entries if entry["model"] == kind)


def test_whisper_hears_what_its_own_extractor_says(transformers, tmp_path):
    network = saved(transformers, "whisper", tmp_path, {}, **example("whisper"))
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    items = heard()
    levels = extractor(list(items.numpy()), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        frames = network.encoder(levels).last_hidden_state
    encode = rdm.representation("huggingface_audio", model=str(tmp_path))
    torch.testing.assert_close(encode(items), frames[:, :16].mean(1), rtol=1e-4, atol=1e-4)  # 5000 of 320 samples
    assert encode.inputs.rate == 16000 and encode.settings["weights_sha256"]
    with pytest.raises(InputError, match=r"hears 16,000 samples \(1 s\) at most; got 16,001; cut them"):
        encode(torch.zeros(1, 16_001))
    with pytest.raises(InputError, match="read at its own place; got layer 1"):
        rdm.representation("huggingface_audio", model=str(tmp_path), layer=1)


def test_claps_embeddings_are_those_of_its_own_extractor(transformers, tmp_path):
    said = {"frequency_min": 50, "frequency_max": 14000, "sampling_rate": 48000, "truncation": "rand_trunc"}
    network = saved(transformers, "clap", tmp_path, said, **example("clap"))
    items = heard(samples=70_000)
    extractor = transformers.ClapFeatureExtractor(**said)
    given = extractor(list(items.numpy()), sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        expected = network.get_audio_features(input_features=given.input_features).pooler_output
    encode = rdm.representation("huggingface_audio", model=str(tmp_path))
    torch.testing.assert_close(encode(items), expected, rtol=1e-4, atol=1e-5)
    assert encode.inputs.rate == 48000
    fused = example("clap")
    fused["audio_config"] = {**fused["audio_config"], "enable_fusion": True}
    with pytest.raises(InputError, match="fuses random crops; take an unfused one"):
        rdm.representation("huggingface_audio", model="clap", weights="random", arguments=fused)


def test_models_of_waveforms_and_codecs_are_transformers_own(transformers, tmp_path):
    items = heard()
    waves = saved(transformers, "wavlm", tmp_path / "wavlm", {"do_normalize": True}, **example("wav2vec2"))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    given = extractor(list(items.numpy()), sampling_rate=16000, return_tensors="pt").input_values
    stereo = {"audio_channels": 2, "sampling_rate": 48000}
    codec = saved(transformers, "encodec", tmp_path / "encodec", {}, **example("encodec"), **stereo)
    with torch.no_grad():
        hidden = waves(given, output_hidden_states=True).hidden_states
        codes = codec.encoder(items[:, None].repeat(1, 2, 1))
    build = lambda name, **options: rdm.representation(  # noqa: E731
        "huggingface_audio", model=str(tmp_path / name), **options
    )
    torch.testing.assert_close(build("wavlm")(items), hidden[-1].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(build("wavlm", layer=1)(items), hidden[1].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(build("encodec")(items), codes.mean(2), rtol=1e-4, atol=1e-5)
    assert build("encodec").inputs.rate == 48000
    assert build("wavlm").fingerprint == build("wavlm").fingerprint != build("wavlm", layer=1).fingerprint
    with pytest.raises(InputError, match="has 2 layers; got layer 3"):
        build("wavlm", layer=3)
    with pytest.raises(InputError, match="takes no waveforms, nor is it one of clap, encodec, dac, whisper"):
        rdm.representation("huggingface_audio", model="bert", weights="random", arguments={"hidden_size": 12})
    (tmp_path / "wavlm" / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 8000}')
    with torch.no_grad():
        torch.testing.assert_close(build("wavlm")(items), waves(items).last_hidden_state.mean(1), rtol=1e-4, atol=1e-5)
    assert build("wavlm").inputs.rate == 8000
