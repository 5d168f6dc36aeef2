"""Folders of sound files."""

import struct
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rdm.api import Source, first_line, require, resample, sources
from rdm.data.sources._files import PICTURES, SOUND, Listing, listing, mostly, top_folders

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
CODECS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 85: "MP3"}
UNKNOWN = 2**32 - 1  # the size that a writer to a pipe leaves


class Wav(NamedTuple):
    """What the header of a wav file says, and where its samples lie."""

    kind: int  # PCM or FLOAT
    width: int  # bytes a sample
    channels: int
    rate: int
    start: int
    size: int


@sources.register("wav_folder", needs='for .flac, .ogg, .mp3 and .aiff soundfile: pip install "rdm-torch[audio]"')
@dataclass(frozen=True)
class WavFolder(Source):
    """A folder of .wav, .flac, .ogg, .mp3 or .aiff files, subfolders included; the top folder is the class.

    PCM of 8 to 32 bits and floats. Channels are averaged; files of another rate than the first one's are resampled to
    it, which is said.
    """

    kind = "audio"
    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return mostly(path, SOUND, PICTURES)

    @cached_property
    def found(self) -> Listing:  # noqa: D102
        return listing(self.path, SOUND)

    @property
    def left_out(self) -> str:  # noqa: D102
        return self.found.said

    @cached_property
    def labels(self) -> list[int]:  # noqa: D102
        return top_folders(self.found.names)

    @cached_property
    def leader(self) -> tuple[str, int] | None:
        """Name and samples a second of the first file that can be read, which all must be like."""
        for name in self.found.names:
            try:
                return name, heard(self.path / name)[1]
            except (OSError, ValueError):
                continue  # named when it is read
        return None

    @property
    def rate(self) -> int | None:  # type: ignore[override]
        """Samples a second."""
        return None if self.leader is None else self.leader[1]

    def __len__(self) -> int:
        return len(self.found.names)

    def name(self, i: int) -> str:  # noqa: D102
        return self.found.names[i]

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        sound, own = heard(self.path / self.found.names[i])
        first, rate = self.leader or (self.found.names[i], own)
        if own == rate:
            return sound
        warnings.warn(
            f"{self.path}: files of {own:,} samples a second are resampled to {rate:,}, {first}'s", stacklevel=2
        )
        return resample(sound, own, rate)

    def label(self, i: int) -> int:  # noqa: D102
        return self.labels[i]


def heard(path: Path) -> tuple[np.ndarray, int]:
    """The mean of a file's channels, and its samples a second.

    Raises:
        ValueError: it cannot be read.
        InputError: it needs soundfile, which is not installed.
    """
    if path.suffix.lower() == ".wav":
        data = path.read_bytes()
        said = header(data)
        return samples(data[said.start : said.start + said.size], said).reshape(-1, said.channels).mean(1), said.rate
    library = require("soundfile", extra="audio", owner=f"a {path.suffix.lower()} file")
    try:
        sound, rate = library.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # whatever the library raises
        raise ValueError(first_line(error)) from error
    return sound.mean(1), rate


def header(data: bytes) -> Wav:
    """The header of a wav file.

    Raises:
        ValueError: another form, a codec that is not read, or less sound than the header says.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError(f"it begins with {data[:4]!r}; expected a RIFF wav file")
    said, at = None, 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"fmt ":
            said = _format(data[at : at + size])
        if name == b"data":
            return _placed(said, at, size, len(data) - at)
        at += size + size % 2
    raise ValueError("it holds no sound; it is truncated")


def _format(chunk: bytes) -> Wav:
    if len(chunk) < 16:
        raise ValueError("its format is truncated")
    kind, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == EXTENSIBLE and len(chunk) >= 26:
        kind = int.from_bytes(chunk[24:26], "little")  # the first bytes of the identifier are the kind
    width = frame // max(channels, 1)
    if width not in {PCM: (1, 2, 3, 4), FLOAT: (4, 8)}.get(kind, ()) or frame != width * channels or rate < 1:
        raise ValueError(
            f"format {kind}{f' ({CODECS[kind]})' if kind in CODECS else ''} of {bits} bits, {channels} channels and "
            f"{rate} samples a second; expected PCM of 8, 16, 24 or 32 bits or float of 32 or 64; convert it"
        )
    return Wav(kind, width, channels, rate, 0, 0)


def _placed(said: Wav | None, start: int, size: int, left: int) -> Wav:
    if said is None:
        raise ValueError("its sound comes before its format; it is damaged")
    frame = said.width * said.channels
    size = left - left % frame if size == UNKNOWN else size
    if size > left or size % frame or size == 0:
        raise ValueError(f"{size} bytes of sound in frames of {frame} are said, {left} are there; it is truncated")
    return said._replace(start=start, size=size)


def samples(data: bytes, said: Wav) -> np.ndarray:
    """Bytes as float32, PCM in [-1, 1)."""
    if said.kind == FLOAT:
        return np.frombuffer(data, f"<f{said.width}").astype(np.float32)
    if said.width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if said.width == 3:
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8
        return whole.astype(np.float32) / 2**23
    return np.frombuffer(data, f"<i{said.width}").astype(np.float32) / 2 ** (8 * said.width - 1)
