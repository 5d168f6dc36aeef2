"""What the points of a sweep draw, as one picture: a column a value of the last axis, a row a value of the others."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from rdm.data.pictures import decode
from rdm.escape import printable

SIDE, LINE = 240, 18  # pixels of a panel; of a line of text


class Panel(NamedTuple):
    """One point's newest picture."""

    row: str
    column: str
    picture: Path


def gallery(panels: Sequence[Panel]) -> bytes:
    """One PNG file of all panels, in 256 colours; the first one of those with the same row and column."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((p.row, p.column) for p in panels), strict=True))
    sheet = Image.new("RGB", ((SIDE + 8) * len(columns), (SIDE + 2 * LINE) * len(rows)), "white")
    text = ImageDraw.Draw(sheet)
    for panel in reversed(panels):
        x, y = (SIDE + 8) * columns.index(panel.column), (SIDE + 2 * LINE) * rows.index(panel.row)
        image = Image.fromarray(decode(panel.picture)).convert("RGB")
        grown = max(1, SIDE // max(image.size))  # small ones without blur
        image = image.resize((image.width * grown, image.height * grown), Image.Resampling.NEAREST)
        image.thumbnail((SIDE, SIDE))
        sheet.paste(image, (x, y + LINE))
        name = printable(", ".join(filter(None, (panel.row, panel.column))))
        text.text((x, y + 1), name[:44], "black", ImageFont.load_default(11))
    small = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
