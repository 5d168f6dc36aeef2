"""Folders of sound files."""

import wave
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.errors import InputError
from rdm.registry import sources
from rdm.source import Source
from rdm.sources.image_folder import files_below, top_folders


@sources.register("wav_folder")
@dataclass(frozen=True)
class WavFolder(Source):
    """A folder of PCM .wav files, subfolders included; channels are averaged, the first folder below is the class."""

    kind = "audio"
    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_dir() and any(p.suffix.lower() == ".wav" for p in path.rglob("*"))

    @cached_property
    def names(self) -> list[str]:  # noqa: D102
        return files_below(self.path, {".wav"})

    @cached_property
    def labels(self) -> list[int]:  # noqa: D102
        return top_folders(self.names)

    @cached_property
    def rate(self) -> int:  # type: ignore[override]
        """Samples a second of the first file, which all must have."""
        with wave.open(str(self.path / self.names[0])) as file:
            return file.getframerate()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:  # noqa: D102
        return self.names[i]

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        with wave.open(str(self.path / self.names[i])) as file:
            if file.getframerate() != self.rate:
                raise InputError(
                    f"{self.path}: {self.names[0]} has {self.rate} samples a second and {self.names[i]} "
                    f"{file.getframerate()}; resample them to one rate"
                )
            data, width, channels = file.readframes(file.getnframes()), file.getsampwidth(), file.getnchannels()
        return samples(data, width).reshape(-1, channels).mean(1, dtype=np.float32)

    def label(self, i: int) -> int:  # noqa: D102
        return self.labels[i]


def samples(data: bytes, width: int) -> np.ndarray:
    """PCM bytes of 1 to 4 bytes a sample as float32 in [-1, 1)."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8
        return whole.astype(np.float32) / 2**23
    return np.frombuffer(data, {2: "<i2", 4: "<i4"}[width]).astype(np.float32) / 2 ** (8 * width - 1)
