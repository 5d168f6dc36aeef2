"""Sets of items as people keep them: a folder of PNG files, a tar of them, an .npz of arrays; written whole."""

import io
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from rdm.errors import InputError
from rdm.files.store import write_folder


class Block(NamedTuple):
    """Items in their order: pictures "n c h w" of 8 bits, or others; with classes, -1 for none."""

    items: Tensor
    labels: Tensor


def form_of(path: Path, shape: list[int]) -> str:
    """The form that a path asks for: its suffix, or "" for a folder.

    Raises:
        InputError: another suffix, or items that are no pictures where the form holds pictures.
    """
    if path.suffix not in FORMS:
        raise InputError(f"expected --out FOLDER, FILE.tar or FILE.npz; got {path.name!r}")
    if path.suffix != ".npz" and not (len(shape) == 3 and shape[0] in (1, 3)):
        raise InputError(f"{path}: items of shape {shape} are no pictures of 1 or 3 channels; give --out FILE.npz")
    return path.suffix


def write_pictures(path: Path, blocks: Iterable[Block], n: int) -> None:
    """A folder of PNG files by number, in folders by class where there are classes."""

    def fill(folder: Path) -> None:
        for k, png, label in _pictures(blocks):
            place = folder if label < 0 else folder / f"{label:04d}"
            place.mkdir(exist_ok=True)
            (place / f"{k:06d}.png").write_bytes(png)

    write_folder(path, fill)


def write_tar(path: Path, blocks: Iterable[Block], n: int) -> None:
    """A tar of 000000.png and so on, with 000000.cls where there are classes, as WebDataset has it."""
    with _whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for k, png, label in _pictures(blocks):
            members = {"png": png} | ({} if label < 0 else {"cls": str(label).encode()})
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{k:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_npz(path: Path, blocks: Iterable[Block], n: int) -> None:
    """`images` (n h w c, 8-bit), `features` (n d) or `rows` in float32, with `labels` where there are classes."""
    labels = []
    with _whole(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        remaining = iter(blocks)
        first = next(remaining)
        array = _array(first.items)
        name = {4: "images", 2: "features"}.get(first.items.ndim, "rows")
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {**header, "shape": (n, *array.shape[1:])})
            for block in chain([first], remaining):
                member.write(_array(block.items).tobytes())
                labels.append(block.labels.numpy())
        whole = np.concatenate(labels)
        if (whole >= 0).all():
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, whole)


def _array(items: Tensor) -> np.ndarray:
    return np.ascontiguousarray((items.permute(0, 2, 3, 1) if items.ndim == 4 else items).numpy())


def _pictures(blocks: Iterable[Block]) -> Iterator[tuple[int, bytes, int]]:
    """Number, PNG file and class of every picture."""
    from PIL import Image

    k = 0
    for items, labels in blocks:
        for array, label in zip(_array(items), labels.tolist(), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
            yield k, buffer.getvalue(), label
            k += 1


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file to write into that gets its name when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


FORMS: Mapping[str, Callable[[Path, Iterable[Any], int], None]] = {
    "": write_pictures,
    ".tar": write_tar,
    ".npz": write_npz,
}
