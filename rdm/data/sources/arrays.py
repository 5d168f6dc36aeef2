"""Arrays in .npz, .npy and .safetensors files: pictures, encoded pictures, sound and features."""

import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rdm.api import CorruptFileError, InputError, Source, decode, first_line, is_grey, printable, sources
from rdm.data.sources._files import fits
from rdm.data.sources._labels import classes, labelled, whole

PIXELS = "images", "image", "x", "data", "arr_0", "samples"
LABELS = "labels", "label", "y"
SUFFIXES = {".npz", ".npy", ".safetensors"}
UNKNOWN_TO_NUMPY = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


class _Header(NamedTuple):
    shape: tuple[int, ...]
    size: int  # bytes


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's arrays by name, without reading them."""
    if not path.is_file() or path.suffix not in SUFFIXES:
        return {}
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if path.suffix == ".npy":
            return {"arr_0": np.load(path, allow_pickle=False, mmap_mode="r").shape}
        return {name: header.shape for name, header in _headers(path).items()}
    except Exception as error:  # zipfile, numpy and safetensors each have their own
        raise _unreadable(path, error) from error


def _headers(path: Path) -> dict[str, _Header]:
    """Shapes and sizes of an .npz file's arrays."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
            found[name.removesuffix(".npy")] = _Header(shape, math.prod(shape) * kind.itemsize)
    return found


def arrays(path: Path) -> dict[str, np.ndarray]:
    """A file's arrays by name; nothing is unpickled."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return {k: (v.float() if v.dtype in UNKNOWN_TO_NUMPY else v).numpy() for k, v in load_file(path).items()}
        if path.suffix == ".npy":
            return {"arr_0": np.load(path, allow_pickle=False, mmap_mode="r")}
        fits(sum(header.size for header in _headers(path).values()), str(path))
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, numpy and safetensors each have their own
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CorruptFileError:
    objects = "allow_pickle" in str(error) or "Python objects" in str(error)  # numpy's advice is to load them unsafely
    why = "it holds Python objects, which are never loaded" if objects else first_line(error)[:200]
    return CorruptFileError(printable(f"{path} cannot be read ({why}); it is truncated, altered or of another form"))


@dataclass(frozen=True)
class _InFile(Source):
    path: Path

    @cached_property
    def held(self) -> dict[str, np.ndarray]:
        """Every array, read once."""
        return arrays(self.path)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Classes, under "labels", "label" or "y"."""
        key = next((k for k in LABELS if k in self.held), None)
        return None if key is None else classes(self.held[key], len(self), f"{self.path}: {key!r}")

    def name(self, i: int) -> str:  # noqa: D102
        return f"{i:08d}"

    def label(self, i: int) -> int:  # noqa: D102
        return labelled(self.labels, i)

    def ends(self, content: str) -> np.ndarray:
        """Where each item begins in the array called `content`, and the last one ends: "offsets"."""
        offsets, size = self.held["offsets"], len(self.held[content])
        right = offsets.ndim == 1 and len(offsets) > 0 and offsets.dtype.kind in "iu"
        if not (right and offsets[0] == 0 and offsets[-1] == size and (offsets[1:] >= offsets[:-1]).all()):
            shown = f"{offsets.dtype} of shape {offsets.shape}"
            shown += f" from {offsets[0]} to {offsets[-1]}" if offsets.ndim == 1 and len(offsets) else ""
            raise InputError(
                f'{self.path}: "offsets" must be n + 1 whole numbers that rise from 0 to {size}, the length of '
                f"{content!r}; got {shown}"
            )
        return offsets.astype(np.int64)


@sources.register("encoded")
class Encoded(_InFile):
    """An .npz of picture files end to end: "data" uint8, "offsets" n + 1, optional "labels"."""

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        found = shapes(path)
        return len(found.get("data", ())) == 1 and "offsets" in found

    @cached_property
    def offsets(self) -> np.ndarray:  # noqa: D102
        if self.held["data"].dtype != np.uint8:
            raise InputError(f'{self.path}: "data" are bytes of picture files, uint8; got {self.held["data"].dtype}')
        return self.ends("data")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return decode(self._bytes(i))

    def grey(self, i: int) -> bool:  # noqa: D102
        return is_grey(self._bytes(i))

    def _bytes(self, i: int) -> bytes:
        return self.held["data"][self.offsets[i] : self.offsets[i + 1]].tobytes()


@sources.register("recordings")
class Recordings(_InFile):
    """An .npz of sound end to end: "audio" int16 or float, "offsets" n + 1, optional "labels" and "rate"."""

    kind = "audio"

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        found = shapes(path)
        return len(found.get("audio", ())) == 1 and "offsets" in found

    @cached_property
    def rate(self) -> int | None:  # type: ignore[override]
        """Samples a second, where the file says."""
        if "rate" not in self.held:
            return None
        rate = self.held["rate"]
        found = whole(rate.item(), f'{self.path}: "rate"') if rate.size == 1 else 0
        if found < 1:
            raise InputError(f'{self.path}: "rate" is one number of samples a second; got shape {rate.shape}, {found}')
        return found

    @cached_property
    def offsets(self) -> np.ndarray:  # noqa: D102
        return self.ends("audio")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return self.held["audio"][self.offsets[i] : self.offsets[i + 1]]


@sources.register("pictures")
class Pictures(_InFile):
    """An .npz, .npy or .safetensors of pictures, "n h w", "n h w c" or "n c h w", 8-bit or float in [0, 1]."""

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return bool(_pictures(shapes(path)))

    @cached_property
    def key(self) -> str:
        """The array that is read: the only one that may be pictures, or one of a usual name."""
        found = _pictures(shapes(self.path))
        named = [k for k in PIXELS if k in found]
        if len(found) > 1 and not named:
            raise InputError(
                printable(f"{self.path} holds several arrays of pictures: {', '.join(map(repr, found))}; ")
                + f"write one a file, or call the one to read {PIXELS[0]!r}"
            )
        return (named or found)[0]

    @property
    def left_out(self) -> str:
        """Other arrays that could be items."""
        rest = {k: s for k, s in shapes(self.path).items() if k not in (self.key, *LABELS) and len(s) > 1}
        return ", ".join(printable(f"array {k!r} of shape {shape}") for k, shape in rest.items())

    @cached_property
    def images(self) -> np.ndarray:
        """Pictures n h w c."""
        found = self.held[self.key]
        if found.ndim == 3:
            return found[..., None]
        if found.shape[3] in (1, 3):
            return found
        if found.shape[1] in (1, 3):
            return found.transpose(0, 2, 3, 1)
        raise InputError(f"{self.path}: {self.key!r} must have 1 or 3 channels, first or last; got shape {found.shape}")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return self.images[i]


def _pictures(found: dict[str, tuple[int, ...]]) -> list[str]:
    return [name for name, shape in found.items() if len(shape) in (3, 4) and name not in LABELS]


@sources.register("rows")
class Rows(_InFile):
    """An .npz, .npy or .safetensors of features already computed: floats "n d", one array a representation."""

    kind = "features"

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        found = shapes(path)
        features = [name for name, shape in found.items() if len(shape) == 2 and name not in LABELS]
        return bool(features) and not {"mu", "sigma"} <= set(found)

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Features by representation; a single unnamed array is called "features"."""
        found = {name: rows for name, rows in self.held.items() if rows.ndim == 2 and name not in LABELS}
        for name, rows in found.items():
            self._check(name, rows)
        if len({len(rows) for rows in found.values()}) > 1:
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in found.items())
            raise InputError(f"{self.path}: arrays of features must have equally many rows; got {counts}")
        return {"features": found["arr_0"]} if list(found) == ["arr_0"] else found

    def _check(self, name: str, rows: np.ndarray) -> None:
        if not name.strip() or not name.isprintable() or set(name) & set("/\\[]"):
            raise InputError(
                printable(f"{self.path}: array {name!r}: tables and files call features by this name; ")
                + "expected one without / \\ [ ] and control characters; rename it"
            )
        if rows.dtype.kind not in "iuf":
            raise InputError(f"{self.path}: features {name!r} must be real numbers; got {rows.dtype}")

    def __len__(self) -> int:
        return len(next(iter(self.members.values())))

    def read(self, i: int) -> np.ndarray:
        """All representations' rows end to end."""
        return np.concatenate([np.asarray(rows[i], np.float64) for rows in self.members.values()])
