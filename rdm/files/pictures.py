"""Grids of generated images as PNG files, and the order of those that an evaluation draws."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from rdm.errors import InputError
from rdm.escape import check_file_names
from rdm.files.store import write_bytes


def grid_png(images: Tensor, *, columns: int, gap: int = 1, least: int = 32) -> bytes:
    """PNG of images "n c h w" in [0, 1] (clamped, rounded), small ones enlarged without blur to `least` pixels."""
    from PIL import Image

    pixels = images.detach().clamp(0, 1).mul(255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    factor = max(1, -(-least // pixels.shape[1]))
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    n, h, w, c = pixels.shape
    rows, gap = -(-n // columns), gap * factor // 2 + 1
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 96, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if c == 1 else sheet[:, :, :3]).save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(path: Path, images: Tensor, *, columns: int) -> None:
    """Write a grid, whole or not at all."""
    write_bytes(path, grid_png(images, columns=columns))


def save_compared(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write an evaluation's pictures in the place of earlier ones, numbered in their order.

    Raises:
        InputError: a name that cannot be one of a file, or a folder that is a link to elsewhere.
    """
    check_file_names(pictures, what="pictures of the evaluation")
    if folder.is_symlink():
        raise InputError(f"{folder} is a link to elsewhere; expected a folder of the run; remove the link")
    earlier = {path for _, path in compared_pictures(folder)}
    paths = [folder / f"compare {k:02} {name}.png" for k, name in enumerate(pictures)]
    for path, png in zip(paths, pictures.values(), strict=True):
        write_bytes(path, png)
    for path in earlier - set(paths):
        path.unlink()


def compared_pictures(folder: Path) -> list[tuple[str, Path]]:
    """Titles and paths of an evaluation's pictures by their numbers, the judged generator's last."""
    return [(re.sub(r"^compare (\d\d )?", "", path.stem), path) for path in sorted(folder.glob("compare *.png"))]
