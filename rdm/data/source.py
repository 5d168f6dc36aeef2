"""Sources: what `rdm reference` and `rdm evaluate` read items from, one form of data a file in `rdm.data.sources`.

Every form gives arrays; one place turns them into equal tensors:

- pictures are grey, of one channel, where all are grey or `channels` is 1; else grey ones get three equal channels;
- 8-bit values are divided by 255, 16-bit ones by 65,535; floats must lie in [0, 1];
- picture files are decoded by `rdm.data.pictures`;
- pictures of other sizes than the first are refused unless `size` says what to resize and crop to (`centre_crop`);
- sound is mono in [-1, 1], resampled where another `rate` is wanted; recordings of other lengths than the first are
  refused unless `size` says how many samples to cut or pad with silence to;
- text is UTF-8 bytes, cut between characters or padded with 0 to `size`.
"""

import hashlib
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rdm.data.inputs import SLACK
from rdm.data.sound import resample
from rdm.errors import InputError, first_line, printable
from rdm.registry import sources


class BrokenItem(InputError):
    """One item cannot be read; the text names it."""


class Source(ABC):
    """Items by number, in an order that is that of their names; frozen and cheap to send to a worker."""

    kind: ClassVar[str] = "images"  # or "audio", "text" or "features"
    path: Path
    rate: int | None = None  # samples a second, of sound where the form says

    @classmethod
    @abstractmethod
    def detects(cls, path: Path) -> bool:
        """Whether the path has this form, by its name and first bytes alone."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What the item is called, in errors and in its identity; the same wherever the data lies."""

    @abstractmethod
    def read(self, i: int) -> np.ndarray:
        """The item: picture "h w c", sound "t", features "d", UTF-8 bytes of text; what fails to decode raises."""

    def label(self, i: int) -> int:
        """Class of the item, -1 where there is none."""
        return -1

    @property
    def left_out(self) -> str:
        """What lies there and is no item, and why, in one line; empty where nothing is."""
        return ""

    def grey(self, i: int) -> bool:
        """Whether the picture has one channel, by its header; asked only of sources whose first picture is grey."""
        return True


class Item(NamedTuple):
    """An item as a tensor, with its class and what identifies it."""

    value: Tensor
    label: int
    name: str
    content: int  # 63-bit hash of the values as read
    depth: str  # "8-bit", "16-bit" or "float"


@dataclass(frozen=True)
class Form:
    """What every item is turned into.

    `size`: side in pixels, samples of sound or bytes of text; None for that of the first item. `rate`: samples a second
    that sound of another rate is brought to, where the source says its own.
    """

    size: int | None = None
    channels: int | None = None
    rate: int | None = None

    def item(self, source: Source, i: int, like: "Item | None" = None) -> Item:
        """Read one item; `like` is the first one, whose shape it must have.

        Raises:
            BrokenItem: it cannot be decoded.
            InputError: its size or channels are others than the first item's.
        """
        who = printable(f"{source.path}: {source.name(i)}")
        try:
            array = source.read(i)
        except InputError:
            raise
        except Exception as error:  # whatever a decoder raises
            raise BrokenItem(f"{who} cannot be read ({printable(first_line(error))})") from error
        content = hashed(str(array.dtype), array.shape, np.ascontiguousarray(array))
        turn = {"images": self._picture, "audio": self._sound, "text": self._text}.get(source.kind, self._row)
        if source.rate is not None and self.rate not in (None, source.rate):
            array = resample(waveform(array, who), source.rate, self.rate).clip(-1, 1)
        value = turn(array, who, like)
        if like is not None and value.shape != like.value.shape:
            raise InputError(
                printable(f"{source.path}: {like.name} is {_sizes(like.value)} and {source.name(i)} is ")
                + f"{_sizes(value)}; give --size to make them equal"
            )
        depth = "text" if source.kind == "text" else _depth(array)
        return Item(value, source.label(i), source.name(i), content, depth)

    def _picture(self, array: np.ndarray, who: str, like: "Item | None") -> Tensor:
        array = array[:, :, None] if array.ndim == 2 else array
        channels = self.channels or (3 if like is None and array.shape[2] > 1 else 0)
        channels = channels or (1 if like is None else len(like.value))
        array = array if array.dtype == np.uint8 and array.shape[2] in (1, 3) else unit(array, who)
        if self.size is not None:
            array = centre_crop(array, self.size)
        if array.shape[2] > channels:
            raise InputError(
                f"{who} has {array.shape[2]} channels, expected {channels}; give the reference --channels 3"
            )
        value = torch.from_numpy(unit(array, who)).permute(2, 0, 1)
        return value.expand(channels, -1, -1) if len(value) < channels else value

    def _sound(self, array: np.ndarray, who: str, like: "Item | None") -> Tensor:
        value = torch.from_numpy(waveform(array, who))
        return value if self.size is None else pad(value[: self.size], (0, max(0, self.size - len(value))))

    def _text(self, array: np.ndarray, who: str, like: "Item | None") -> Tensor:
        data = array.tobytes()
        if self.size is not None:
            data = data[: self.size].decode(errors="ignore" if len(data) > self.size else "strict").encode()
            data = data.ljust(self.size, b"\0")
        return torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64))

    def _row(self, array: np.ndarray, who: str, like: "Item | None") -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))


def open_source(path: Path) -> Source:
    """The source at a path, its form detected.

    Raises:
        InputError: nothing there, of no known form, or empty.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"expected data at {path}; there is none")
    for entry in sources.values():
        form: Any = entry.build
        if form.detects(path):
            return _opened(form(path))
    held = _contents(path)
    if path.is_dir() and not held:
        raise InputError(f"{path} is an empty folder; expected pictures or wav files in it")
    error = InputError(f"{path} has no known form{held}; `rdm list sources` says what is read:")
    for line in forms():
        error.add_note(line)
    raise error


def forms() -> list[str]:
    """What is read, a form a line: suffixes, then folders."""
    said = (re.split("[:;] ", entry.summary.removeprefix("A ").removeprefix("An "))[0] for entry in sources.values())
    return sorted((line.rstrip(".") for line in said), key=lambda line: (not line.startswith("."), line))


def _opened(source: Source) -> Source:
    """A source that holds something, when what it leaves out is said."""
    if len(source) == 0:
        raise InputError(f"{source.path} holds no items; expected at least one")
    if source.left_out:
        warnings.warn(f"{printable(str(source.path))}: left out: {source.left_out}", stacklevel=3)
    return source


def _contents(path: Path) -> str:
    """What a folder holds most of, in words."""
    found = Counter(each.suffix.lower() or "without a suffix" for each in path.rglob("*") if each.is_file())
    return f"; it holds {', '.join(f'{n} {suffix}' for suffix, n in found.most_common(3))}" if found else ""


@dataclass(frozen=True)
class Given(Source):
    """Items in memory: a tensor "n ..." in [0, 1], or features "n d"."""

    values: Tensor
    labels: Tensor | None = None
    path: Path = Path("tensor")
    kind: str = "images"  # type: ignore[misc]

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return False

    def __len__(self) -> int:
        return len(self.values)

    def name(self, i: int) -> str:  # noqa: D102
        return str(i)

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        value = self.values[i].detach().cpu()
        return (value.permute(1, 2, 0) if value.ndim == 3 else value).numpy()

    def label(self, i: int) -> int:  # noqa: D102
        return -1 if self.labels is None else int(self.labels[i])


def unit(array: np.ndarray, who: str) -> np.ndarray:
    """Pictures in [0, 1] as float32: 8-bit over 255, 16-bit over 65,535, floats checked."""
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{who}: pictures must be 8-bit, 16-bit or float in [0, 1]; got {array.dtype}")
    return _within(array, 0, 1, who)


def waveform(array: np.ndarray, who: str) -> np.ndarray:
    """Sound in [-1, 1] as float32: whole numbers over their type's range, floats checked."""
    if array.dtype in (np.int16, np.int32):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{who}: sound must be int16, int32 or float in [-1, 1]; got {array.dtype}")
    return _within(array, -1, 1, who)


def _within(array: np.ndarray, low: int, high: int, who: str) -> np.ndarray:
    """Floats as float32, checked to lie in a range; what rounding moved out of it is moved back."""
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InputError(f"{who}: NaN or infinity in {bad} values; expected [{low}, {high}]")
    if array.size == 0:
        raise InputError(f"{who}: it is empty")
    least, most = array.min(), array.max()
    if least < low - SLACK or most > high + SLACK:
        raise InputError(f"{who}: floats must lie in [{low}, {high}]; got {least:.6g} to {most:.6g}; scale them")
    return array.astype(np.float32).clip(low, high)


def centre_crop(array: np.ndarray, size: int) -> np.ndarray:
    """ADM's crop: halve by BOX while the shorter side is at least twice `size`, BICUBIC to `size`, cut the centre.

    Source: Dhariwal and Nichol (2021), guided-diffusion's `center_crop_arr`; 8-bit as theirs, other depths a channel
    at a time in float32. Pictures of that size already are left as they are.
    """
    if array.shape[:2] == (size, size):
        return array
    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        whole = _shrink(array[:, :, 0] if array.shape[2] == 1 else array, size)
        return whole[:, :, None] if whole.ndim == 2 else whole
    planes = [_shrink(array[:, :, c].astype(np.float32), size) for c in range(array.shape[2])]
    return np.stack(planes, 2).clip(0, 1)


def _shrink(array: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(array)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    shrunk = np.array(picture)
    top, left = (shrunk.shape[0] - size) // 2, (shrunk.shape[1] - size) // 2
    return shrunk[top : top + size, left : left + size]


def hashed(*parts: object) -> int:
    """A 63-bit number from values and arrays, the same on every machine."""
    sha = hashlib.blake2b(digest_size=8)
    for part in parts:
        sha.update(part.data if isinstance(part, np.ndarray) else f"{part}/".encode("utf-8", "surrogateescape"))
    return int.from_bytes(sha.digest(), "little") >> 1


def _sizes(value: Tensor) -> str:
    return f"{value.shape[2]}x{value.shape[1]}" if value.ndim == 3 else f"{len(value)} long"


def _depth(array: np.ndarray) -> str:
    return {"uint8": "8-bit", "uint16": "16-bit", "int16": "16-bit", "bool": "8-bit"}.get(str(array.dtype), "float")
