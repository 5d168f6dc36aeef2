"""Sound models of HuggingFace transformers, by name or from a folder: what Fréchet audio distances are made of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rdm.api import Count, InputError, Representation, representations, require, waveforms
from representations._pooling import Tapped
from representations._transformers import configured, loaded, model_file
from representations._weights import PRETRAINED, RANDOM, origin

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WAVES = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8}
HALVES = {
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
}
CODES = {"upsampling_ratios": (4, 4), "num_filters": 2, "num_lstm_layers": 1, "codebook_size": 8, "codebook_dim": 8}
SWIN = {"patch_embeds_hidden_size": 8, "depths": (1, 1), "num_attention_heads": (2, 2), "hidden_size": 16}


@representations.register(
    "huggingface_audio",
    examples=(
        {
            "model": "wav2vec2",
            "weights": RANDOM,
            "layer": 1,
            "arguments": {**TINY, **WAVES, "num_conv_pos_embedding_groups": 2},
        },
        {"model": "encodec", "weights": RANDOM, "arguments": {**CODES, "hidden_size": 8}},
        {
            "model": "whisper",
            "weights": RANDOM,
            "arguments": {**HALVES, "d_model": 16, "max_source_positions": 50, "vocab_size": 64, "pad_token_id": 0},
        },
        {
            "model": "clap",
            "weights": RANDOM,
            "arguments": {"projection_dim": 8, "audio_config": SWIN, "text_config": {**TINY, "vocab_size": 64}},
        },
    ),
    needs='transformers: pip install "rdm-torch[text]"',
)
def huggingface_audio(
    model: str,
    layer: Count | None = None,
    weights: str = PRETRAINED,
    allow_download: bool = False,
    sha256: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Representation:
    """Features of a sound model of transformers (Wolf et al. 2020), by its name on the hub or from a local folder.

    By the type of the model:

    - clap (Wu et al. 2023; "laion/clap-htsat-unfused", "laion/larger_clap_music"): the embedding of length 1 that it
      compares with texts, of at most 10 s; shorter sound is repeated as often as it fits, then followed by zeros.
    - encodec, dac (Défossez et al. 2022; Kumar et al. 2023): the encoder's frames before they are quantized.
    - whisper (Radford et al. 2023): the encoder's frames, of at most 30 s, those of the zeros after them left out.
    - wav2vec2, hubert, wavlm and every other that takes waveforms: the last frames, or those after block number
      `layer` (from 1), of waveforms of mean 0 and variance 1 where its preprocessor_config.json says so.

    Frames are averaged over time: one row an item, where Fréchet audio distances have one a frame or a window; cut
    sound into such windows to compare with theirs. The rate is the model's; sound of another one is resampled.
    `weights`, `allow_download`, `sha256` and `arguments` are those of the representation `huggingface`; models that
    come with code of their own (MERT) are refused, and so are CLAP's that fuse crops at random.

    Shapes: n samples -> n d. Cost: one forward pass of the model.

    Raises:
        InputError: no model there or no weights; `layer` of a model that has none; sound that is too long.
        MismatchError: a file of another hash.
    """
    owner = f"huggingface_audio model {model!r}"
    library = require("transformers", extra="text", owner=owner)
    path = None if weights == RANDOM else model_file(model, weights, allow_download, sha256, owner)
    if path is not None and arguments:
        raise InputError(f'{owner}: arguments configure weights="{RANDOM}"; got {dict(arguments)!r}; leave them out')
    network = (
        configured(library, model, arguments or {}, owner) if path is None else loaded(library, path.parent, owner)[0]
    )
    _plain(network)
    build = ENCODERS.get(network.config.model_type, _Waves)
    if layer is not None and build is not _Waves:
        raise InputError(f"{owner} is read at its own place; got layer {layer}; leave it out")
    module = build(library, network, {"layer": layer, **_said(path)}, owner)
    settings = {"model": model, "layer": layer, "rate": module.rate, **origin(path)}
    return Representation(name or model.rpartition("/")[2], module, settings, inputs=waveforms(module.rate))


class _Waves(nn.Module):
    """Models of waveforms themselves."""

    def __init__(self, library: Any, network: Any, said: Mapping[str, Any], owner: str):
        super().__init__()
        if getattr(network, "main_input_name", "") != "input_values":
            raise InputError(f"{owner} takes no waveforms, nor is it one of {', '.join(ENCODERS)}; take another")
        layer, layers = said["layer"], network.config.num_hidden_layers
        if layer is not None and layer > layers:
            raise InputError(f"{owner} has {layers} layers; got layer {layer}")
        self.network = network if layer is None else Tapped(network, f"encoder.layers.{layer - 1}", owner=owner)
        self.rate, self.normalize = said.get("sampling_rate", 16000), said.get("do_normalize", True)

    def forward(self, items: Tensor) -> Tensor:
        """Waveforms to the mean of the frames."""
        if self.normalize:
            variance, mean = torch.var_mean(items, 1, correction=0, keepdim=True)
            items = (items - mean) / (variance + 1e-7).sqrt()
        found = self.network(items)
        return (found if isinstance(found, Tensor) else found[0]).mean(1)

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"normalize={self.normalize}"


class _Codec(nn.Module):
    """The continuous codes of a codec."""

    def __init__(self, library: Any, network: Any, said: Mapping[str, Any], owner: str):
        super().__init__()
        self.encoder, self.rate = network.encoder, network.config.sampling_rate
        self.channels = getattr(network.config, "audio_channels", 1)

    def forward(self, items: Tensor) -> Tensor:
        """Waveforms to the mean of the codes."""
        return self.encoder(items[:, None].expand(-1, self.channels, -1)).mean(2)


class _Spectrogram(nn.Module):
    """log10 of the mel power of frames centred at every hop, the waveform reflected at its ends: "n bands frames"."""

    window: Tensor
    filters: Tensor

    def __init__(self, window: int, hop: int, filters: Any):
        super().__init__()
        self.hop = hop
        self.register_buffer("window", torch.hann_window(window, dtype=torch.float64).float())
        self.register_buffer("filters", torch.as_tensor(filters, dtype=torch.float32).T.contiguous())

    def forward(self, items: Tensor) -> Tensor:
        """Waveforms to levels."""
        size = len(self.window)
        spectrum = torch.stft(items, size, self.hop, window=self.window, pad_mode="reflect", return_complex=True)
        return (self.filters @ (spectrum.real.square() + spectrum.imag.square())).clamp_min(1e-10).log10()


class _Whisper(nn.Module):
    def __init__(self, library: Any, network: Any, said: Mapping[str, Any], owner: str):
        super().__init__()
        own = library.WhisperFeatureExtractor(feature_size=network.config.num_mel_bins)
        self.rate, self.encoder, self.owner = own.sampling_rate, network.encoder, owner
        self.spectrogram = _Spectrogram(own.n_fft, own.hop_length, own.mel_filters)
        self.step = 2 * own.hop_length  # samples of a frame of the encoder, which halves them
        self.most = network.config.max_source_positions * self.step

    def forward(self, items: Tensor) -> Tensor:
        """Waveforms to the mean of the encoder's frames of the sound itself."""
        samples = items.shape[1]
        _refuse_long(samples, self.most, self.rate, self.owner)
        levels = self.spectrogram(nn.functional.pad(items, (0, self.most - samples)))[:, :, :-1]
        levels = (levels.maximum(levels.amax((1, 2), keepdim=True) - 8) + 4) / 4
        return self.encoder(levels).last_hidden_state[:, : -(-samples // self.step)].mean(1)


class _Clap(nn.Module):
    def __init__(self, library: Any, network: Any, said: Mapping[str, Any], owner: str):
        super().__init__()
        if network.config.audio_config.enable_fusion:
            raise InputError(f"{owner} fuses random crops; take an unfused one, laion/clap-htsat-unfused")
        known = ["feature_size", "sampling_rate", "hop_length", "fft_window_size", "max_length_s"]
        known += ["frequency_min", "frequency_max"]
        given = {"frequency_min": 50, **{key: said[key] for key in known if key in said}}  # 50 Hz is LAION's
        own = library.ClapFeatureExtractor(truncation="rand_trunc", **given)
        self.rate, self.most, self.owner = own.sampling_rate, own.nb_max_samples, owner
        self.spectrogram = _Spectrogram(own.fft_window_size, own.hop_length, own.mel_filters_slaney)
        self.tower, self.projection = network.audio_model, network.audio_projection

    def forward(self, items: Tensor) -> Tensor:
        """Waveforms to embeddings of length 1."""
        samples = items.shape[1]
        _refuse_long(samples, self.most, self.rate, self.owner)
        repeated = items.repeat(1, self.most // samples)
        levels = 10 * self.spectrogram(nn.functional.pad(repeated, (0, self.most - repeated.shape[1])))
        levels = levels.transpose(1, 2)[
            :, None
        ].contiguous()  # else torch 2.13's batch norm has a wrong gradient on CPU
        found = self.tower(input_features=levels).pooler_output
        return nn.functional.normalize(self.projection(found), dim=1)


ENCODERS = {"clap": _Clap, "encodec": _Codec, "dac": _Codec, "whisper": _Whisper}


def _refuse_long(samples: int, most: int, rate: int, owner: str) -> None:
    if samples > most:
        raise InputError(
            f"{owner} hears {most:,} samples ({most / rate:g} s) at most; got {samples:,}; cut them, as by --size"
        )


def _said(path: Path | None) -> dict[str, Any]:
    """What the model's own preprocessor_config.json says."""
    file = None if path is None else path.parent / "preprocessor_config.json"
    return json.loads(file.read_text()) if file is not None and file.is_file() else {}


def _plain(network: nn.Module) -> None:
    """Weights that are computed from others (weight normalisation) as what they come to: they are frozen here."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type, union-attr]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            module._load_state_dict_pre_hooks.clear()  # of weights of the older form; no process takes them
