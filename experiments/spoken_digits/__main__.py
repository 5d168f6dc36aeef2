"""Sound of spectrograms: python -m experiments.spoken_digits SAMPLES.npz OUT.wav [--rounds N].

SAMPLES are pictures of the data set spoken_digit_spectrograms, as `rdm sample` writes them. Phases are found by the
algorithm of Griffin and Lim (1984), "Signal Estimation from Modified Short-Time Fourier Transform".
"""

import argparse
import io
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdm.data.mel import mel_filters
from rdm.datasets.spoken_digits import LOUD, QUIET
from rdm.files.store import write_bytes
from rdm.randomness import stream

RATE, WINDOW, HOP = 8000, 512, 242


def sound(pictures: Tensor, rounds: int = 60) -> Tensor:
    """Waveforms "n samples" of spectrograms "n 1 bands frames" in [0, 1].

    Amplitudes of all frequencies are the least ones that give the bands' power; phases start at random.
    """
    levels = QUIET + (LOUD - QUIET) * pictures[:, 0].double()
    filters = mel_filters(RATE, WINDOW, pictures.shape[2], 0.0, RATE / 2)
    power = torch.linalg.pinv(filters) @ (levels.exp() - 1e-8).clamp_min(0)
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    size = power.clamp_min(0).sqrt() * window.sum()
    phase = 2 * torch.pi * torch.rand(size.shape, generator=stream(0, "phases"), dtype=torch.float64)
    frames = torch.polar(size, phase)
    options = {"n_fft": WINDOW, "hop_length": HOP, "window": window, "center": True}
    for _ in range(rounds):
        waveform = torch.istft(frames, **options)
        again = torch.stft(waveform, return_complex=True, **options)
        frames = torch.polar(size, again.angle())
    return torch.istft(frames, **options)


def wav(waveform: Tensor) -> bytes:
    """A file of 16 bits, 8,000 samples a second; louder than 1 is cut."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((waveform.clamp(-1, 1) * 32767).numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def main() -> None:
    """All samples one after the other, in one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    with np.load(options.samples, allow_pickle=False) as held:
        pictures = torch.from_numpy(held["images"]).movedim(-1, 1).double() / 255
    write_bytes(options.out, wav(sound(pictures, options.rounds).flatten()))
    print(f"{len(pictures)} spectrograms: {options.out}")


if __name__ == "__main__":
    main()
