"""Log-mel spectrograms in plain torch."""

import math

import torch
from torch import Tensor, nn

from rdm.errors import InputError
from rdm.numbers import Float


class LogMel(nn.Module):
    r"""Waveforms "n samples", of any length -> log-mel spectrograms "n bands frames".

    .. math:: L_{bt} = \log\Big(\epsilon + \sum_f M_{bf} \Big| \frac{\sum_k w_k x_{t h + k} e^{-2 \pi i f k / K}}
              {\sum_k w_k} \Big|^2 \Big), \qquad w_k = \sin^2(\pi k / K)

    Frames of K = `window` samples begin every h = `hop` samples, the first at the first sample. Zeros follow the
    waveform until a whole number of frames holds all of it, one at least. w is the periodic Hann window; a sine of
    amplitude a has power a^2 / 4 at its frequency. M are triangles of height 1, linear in Hz, on bands + 2 points
    equally spaced from `low` to `high` hertz on HTK's mel scale, 2595 log10(1 + f / 700) (Young et al. 2006, "The HTK
    Book", equation 5.13; O'Shaughnessy 1987), without Slaney's normalisation by area. The floor is added, not a
    maximum, so that silence has a gradient.

    Raises:
        InputError: settings of no spectrogram; bands so narrow that one holds no frequency of the transform.
    """

    hann: Tensor
    filters: Tensor

    def __init__(
        self,
        rate: int = 8000,
        window: int = 256,
        hop: int = 128,
        bands: int = 40,
        low: float = 0.0,
        high: float | None = None,
        floor: float = 1e-8,
    ):
        super().__init__()
        high = rate / 2 if high is None else high
        if not (1 <= hop <= window and window >= 2 and bands >= 1 and 0 <= low < high <= rate / 2 and floor > 0):
            raise InputError(
                "expected 1 <= hop <= window, window >= 2, bands >= 1, 0 <= low < high <= rate / 2 and floor > 0; "
                f"got hop {hop}, window {window}, bands {bands}, low {low:g}, high {high:g}, rate {rate}, floor {floor}"
            )
        self.window, self.hop, self.floor = window, hop, floor
        hann = torch.sin(math.pi * torch.arange(window, dtype=torch.float64) / window).square()
        self.register_buffer("hann", hann / hann.sum())
        self.register_buffer("filters", mel_filters(rate, window, bands, low, high))

    def forward(self, waveforms: Float[Tensor, "n samples"]) -> Float[Tensor, "n bands frames"]:
        """Log power in each band and frame."""
        beyond = max(waveforms.shape[1] - self.window, 0)
        length = self.window + math.ceil(beyond / self.hop) * self.hop
        padded = nn.functional.pad(waveforms, (0, length - waveforms.shape[1]))
        frames = padded.unfold(1, self.window, self.hop) * self.hann.to(waveforms)
        spectrum = torch.fft.rfft(frames)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.filters.to(power).T + self.floor).log().transpose(1, 2)


def mel_filters(rate: int, window: int, bands: int, low: float, high: float) -> Float[Tensor, "bands frequencies"]:
    """Triangles on HTK's mel scale over the frequencies of a transform of `window` samples, in float64."""
    mels = torch.linspace(_mel(low), _mel(high), bands + 2, dtype=torch.float64)
    points = 700 * (10 ** (mels / 2595) - 1)
    left, centre, right = points[:-2, None], points[1:-1, None], points[2:, None]
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    triangles = torch.minimum((frequencies - left) / (centre - left), (right - frequencies) / (right - centre))
    filters = triangles.clamp(min=0)
    if empty := int((filters.sum(1) == 0).sum()):
        raise InputError(
            f"{empty} of {bands} mel bands hold no frequency of a transform of {window} samples at {rate} a second; "
            "take fewer bands or a longer window"
        )
    return filters


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
