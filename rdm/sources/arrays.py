"""Arrays in .npz, .npy and .safetensors files: pictures, encoded pictures, sound and features."""

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rdm.errors import CorruptFileError, InputError
from rdm.registry import sources
from rdm.source import Source, decode, labelled

PIXELS = "images", "image", "x", "data", "arr_0", "samples"
SUFFIXES = {".npz", ".npy", ".safetensors"}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's arrays by name, without reading them."""
    if not path.is_file() or path.suffix not in SUFFIXES:
        return {}
    try:
        if path.suffix == ".safetensors":
            with open(path, "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
        if path.suffix == ".npy":
            return {"arr_0": np.load(path, allow_pickle=False, mmap_mode="r").shape}
        with zipfile.ZipFile(path) as archive:
            return {name: _header(archive, name) for name in (n.removesuffix(".npy") for n in archive.namelist())}
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} cannot be read ({error}); it is truncated or holds objects") from error


def _header(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name if name in archive.namelist() else f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """A file's arrays by name; nothing is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npy":
            return {"arr_0": np.load(path, allow_pickle=False, mmap_mode="r")}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, numpy and safetensors each have their own
        raise CorruptFileError(f"{path} cannot be read ({error}); it is truncated or holds objects") from error


@dataclass(frozen=True)
class _InFile(Source):
    path: Path

    @cached_property
    def held(self) -> dict[str, np.ndarray]:
        """Every array, read once."""
        return arrays(self.path)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Classes, under "labels" or "label"."""
        return next((self.held[k] for k in ("labels", "label", "y") if k in self.held), None)

    def name(self, i: int) -> str:  # noqa: D102
        return f"{i:08d}"

    def label(self, i: int) -> int:  # noqa: D102
        return labelled(self.labels, i)


@sources.register("encoded")
class Encoded(_InFile):
    """An .npz of picture files end to end: "data" uint8, "offsets" n + 1, optional "labels"."""

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        found = shapes(path)
        return len(found.get("data", ())) == 1 and "offsets" in found

    def __len__(self) -> int:
        return len(self.held["offsets"]) - 1

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        start, end = (int(k) for k in self.held["offsets"][i : i + 2])
        return decode(self.held["data"][start:end].tobytes())


@sources.register("recordings")
class Recordings(_InFile):
    """An .npz of sound end to end: "audio" int16 or float, "offsets" n + 1, optional "labels" and "rate"."""

    kind = "audio"

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        found = shapes(path)
        return "audio" in found and "offsets" in found

    @cached_property
    def rate(self) -> int | None:  # type: ignore[override]
        """Samples a second, where the file says."""
        return int(self.held["rate"]) if "rate" in self.held else None

    def __len__(self) -> int:
        return len(self.held["offsets"]) - 1

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        start, end = (int(k) for k in self.held["offsets"][i : i + 2])
        return self.held["audio"][start:end]


@sources.register("pictures")
class Pictures(_InFile):
    """An .npz, .npy or .safetensors of pictures, "n h w", "n h w c" or "n c h w", 8-bit or float in [0, 1]."""

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return any(len(shape) in (3, 4) for shape in shapes(path).values())

    @cached_property
    def images(self) -> np.ndarray:
        """Pictures n h w c."""
        named = [k for k in PIXELS if self.held.get(k, np.empty(0)).ndim in (3, 4)]
        key = named[0] if named else next(k for k, v in self.held.items() if v.ndim in (3, 4))
        found = self.held[key]
        if found.ndim == 3:
            return found[..., None]
        if found.shape[3] in (1, 3):
            return found
        if found.shape[1] in (1, 3):
            return found.transpose(0, 2, 3, 1)
        raise InputError(f"{self.path}: {key!r} must have 1 or 3 channels, first or last; got shape {found.shape}")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        return self.images[i]


@sources.register("rows")
class Rows(_InFile):
    """An .npz, .npy or .safetensors of features already computed: floats "n d", one array a representation."""

    kind = "features"

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        found = shapes(path)
        return any(len(shape) == 2 for shape in found.values()) and not {"mu", "sigma"} <= set(found)

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Features by representation; a single unnamed array is called "features"."""
        found = {name: rows for name, rows in self.held.items() if rows.ndim == 2}
        if len({len(rows) for rows in found.values()}) > 1:
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in found.items())
            raise InputError(f"{self.path}: arrays of features must have equally many rows; got {counts}")
        return {"features": found["arr_0"]} if list(found) == ["arr_0"] else found

    def __len__(self) -> int:
        return len(next(iter(self.members.values())))

    def read(self, i: int) -> np.ndarray:
        """All representations' rows end to end."""
        return np.concatenate([np.asarray(rows[i], np.float64) for rows in self.members.values()])
