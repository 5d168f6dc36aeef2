"""What the points of a sweep draw, side by side: one column a value of the last axis, one row a value of the others."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from rdm.data.pictures import decode
from rdm.escape import drawn
from rdm.files.pictures import compared_pictures
from rdm.reports.run import blank_figure

INCHES, PIXELS = 1.7, 100  # of a panel; an inch


class Panel(NamedTuple):
    """One point's newest picture."""

    row: str
    column: str
    picture: Path


def newest_picture(point: Path) -> Path | None:
    """The last of the pictures that a point's evaluation drew, which is of the run itself; None without any."""
    drawn = compared_pictures(point / "samples")
    return drawn[-1][1] if drawn else None


def gallery(panels: Sequence[Panel]) -> bytes:
    """One PNG file of all panels, in 256 colours; the first one of those with the same row and column.

    Raises:
        InputError: matplotlib is not installed.
    """
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((p.row, p.column) for p in panels), strict=True))
    figure = blank_figure(INCHES * len(columns) + 0.3, INCHES * len(rows) + 0.3)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axis in grid.flatten():
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for panel in reversed(panels):
        grid[rows.index(panel.row)][columns.index(panel.column)].imshow(decode(panel.picture), cmap="gray")
    for axis, name in zip(grid[0], columns, strict=True):
        axis.set_title(drawn(name), fontsize=8)
    for axis, name in zip(grid[:, 0], rows, strict=True):
        axis.set_ylabel(drawn(name), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS)
    small = io.BytesIO()
    Image.open(buffer, formats=["PNG"]).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()
