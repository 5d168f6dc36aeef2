"""Free Spoken Digit Dataset: 3,000 recordings of the ten digits by six speakers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rdm.api import Count, Dataset, InputError, LogMel, datasets, nearest
from rdm.datasets._place import place

FILE = Path("fsdd", "fsdd_8khz_int16.npz")


@datasets.register("spoken_digits", needs="fsdd/fsdd_8khz_int16.npz in the folder that RDM_DATA names")
def spoken_digits(
    split: Literal["train", "test", "all"] = "train",
    speakers: Sequence[str] | None = None,
    takes: tuple[int, int] | None = None,
    length: Count = 8000,
) -> Dataset:
    """Spoken digits (Jackson 2016), waveforms "n length" at 8,000 samples a second in [-1, 1], 10 classes.

    split "test": the official one, recordings 0 to 4 of each digit and speaker (300); "train": the other 2,700.
    Recordings begin with the word: longer ones lose their end, shorter ones are followed by zeros. A program in
    docs/new_domain.md packs the public recordings into the file.

    Args:
        split: which recordings.
        speakers: only these speakers' recordings; None for all six.
        takes: only recordings from the first of these numbers up to the second, left out, of the 50 that there are of
            each digit and speaker; in the place of `split`.
        length: samples of an item; 8,000 are one second, which 99.3 % of the recordings fit in.
    """
    if takes is not None and not 0 <= takes[0] < takes[1] <= 50:
        raise InputError(f"takes are a first and a last number, left out, from 0 to 50; got {tuple(takes)}")
    with np.load(place("spoken_digits", FILE), allow_pickle=False) as stored:
        audio, offsets, index = stored["audio"], stored["offsets"], stored["index"]
        labels, speaker, names = stored["labels"], stored["speaker"], stored["speaker_names"].tolist()
    for name in speakers or ():
        if name not in names:
            raise InputError(f"no speaker of the spoken digits is called {name!r}{nearest(name, names)}")
    first, last = takes or {"train": (5, 50), "test": (0, 5), "all": (0, 50)}[split]
    chosen = (index >= first) & (index < last)
    if speakers is not None:
        chosen = chosen & np.isin(speaker, [names.index(name) for name in speakers])
    rows = np.flatnonzero(chosen)
    waveforms = np.zeros((len(rows), length), np.float32)
    for waveform, row in zip(waveforms, rows, strict=True):
        recording = audio[offsets[row] : offsets[row + 1]][:length]
        waveform[: len(recording)] = recording / 32768
    said = "" if speakers is None else f"/{','.join(speakers)}"
    part = split if takes is None else f"takes {first} to {last - 1}"
    items, classes = torch.from_numpy(waveforms), torch.from_numpy(labels[rows]).long()
    return Dataset(f"spoken_digits/{part}{said}", items, classes, classes=10)


QUIET, LOUD = -18.42, -4.42  # of log power: the floor of `LogMel`, and what few frames of speech exceed


@datasets.register("spoken_digit_spectrograms", needs="fsdd/fsdd_8khz_int16.npz in the folder that RDM_DATA names")
def spoken_digit_spectrograms(
    split: Literal["train", "test", "all"] = "train", takes: tuple[int, int] | None = None
) -> Dataset:
    """Log-mel spectrograms of `spoken_digits`, a second each: pictures "n 1 32 32" in [0, 1], bands by frames.

    `rdm.data.mel.LogMel` of windows of 512 samples every 242, log power from -18.42 to -4.42 mapped to [0, 1] and cut
    there. `python -m experiments.spoken_digits` makes sound of them.
    """
    spoken = spoken_digits(split, takes=takes)
    levels = LogMel(8000, window=512, hop=242, bands=32)(spoken.images)
    pictures = ((levels - QUIET) / (LOUD - QUIET)).clamp(0, 1)[:, None].float()
    return Dataset(spoken.name.replace("digits", "digit_spectrograms"), pictures, spoken.labels, classes=10)
