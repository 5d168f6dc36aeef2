"""Sound: statistics of log-mel spectrograms, and small classifiers of waveforms for `rdm train`."""

import torch
from torch import Tensor, nn

from rdm.api import LogMel, Representation, networks, representations, waveforms
from representations._classifier import Classifier


@representations.register("log_mel", examples=({"window": 64, "hop": 32, "bands": 8},))
def log_mel(
    rate: int = 8000,
    window: int = 256,
    hop: int = 128,
    bands: int = 40,
    low: float = 0.0,
    high: float | None = None,
    floor: float = 1e-8,
    name: str = "log_mel",
) -> Representation:
    """Mean and standard deviation over time of each band of a log-mel spectrogram.

    The spectrogram and its conventions are those of `rdm.data.mel.LogMel`: periodic Hann window, HTK's mel
    scale, short waveforms followed by zeros. Waveforms of another sampling rate than `rate` must be resampled before.

    Args:
        rate: samples a second.
        window: samples of a frame.
        hop: samples from one frame's beginning to the next one's.
        bands: mel bands from `low` to `high`.
        low: hertz where the first band begins.
        high: hertz where the last band ends; None for half the rate.
        floor: power added before the logarithm.
        name: how tables call it.

    Shapes: n samples -> n (2 bands). Cost: one transform of `window` samples a hop.
    Raises: InputError: settings of no spectrogram; bands without a frequency.
    """
    settings = {"rate": rate, "window": window, "hop": hop, "bands": bands, "low": low, "high": high, "floor": floor}
    return Representation(name, _Statistics(LogMel(**settings)), settings, inputs=waveforms(rate))


class _Statistics(nn.Module):
    def __init__(self, spectrogram: LogMel):
        super().__init__()
        self.spectrogram = spectrogram

    def forward(self, items: Tensor) -> Tensor:
        levels = self.spectrogram(items)
        variance = levels.var(2, correction=0)
        return torch.cat([levels.mean(2), (variance + 1e-6).sqrt()], 1)  # a single frame has a gradient, too


@networks.register("spectrogram_classifier", examples=({"width": 8, "bands": 16},))
class SpectrogramClassifier(Classifier):
    """Four 3x3 convolutions over a log-mel spectrogram, mean over time: waveforms n samples -> logits n classes."""

    def __init__(self, rate: int = 8000, bands: int = 40, classes: int = 10, width: int = 24, features: int = 64):
        super().__init__()
        self.inputs = waveforms(rate)
        self.spectrogram = LogMel(rate, window=rate * 32 // 1000, hop=rate * 16 // 1000, bands=bands)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate([(1, width), (width, 2 * width), (2 * width, 2 * width)]):
            stride = 2 if i < 2 else (2, 1)
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GELU())
        self.hidden = nn.Linear(2 * width * -(-bands // 8), features)
        self.head = nn.Linear(features, classes)

    def features(self, items: Tensor) -> Tensor:
        """Activations of the hidden layer."""
        levels = (self.spectrogram(items) + 12) / 4  # about zero mean and unit variance for speech
        return nn.functional.gelu(self.hidden(self.trunk(levels[:, None]).mean(3).flatten(1)))


@networks.register("waveform_classifier", examples=({"width": 8},))
class WaveformClassifier(Classifier):
    """One-dimensional convolutions over the raw waveform at unit power: waveforms n samples -> logits n classes.

    Source: Dai et al. (2017), "Very Deep Convolutional Neural Networks for Raw Waveforms", network M5, with group
    normalisation and strides instead of pooling.
    """

    def __init__(self, classes: int = 10, width: int = 32):
        super().__init__()
        self.inputs = waveforms()
        widths = [1, width, width, 2 * width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            kernel, stride = (80, 16) if i == 0 else (5, 2)
            layers += [nn.Conv1d(before, after, kernel, stride, kernel // 2), nn.GroupNorm(4, after), nn.GELU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def features(self, items: Tensor) -> Tensor:
        """Mean over time of the last activations."""
        loudness = (items.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return self.trunk((items / loudness)[:, None]).mean(2)
