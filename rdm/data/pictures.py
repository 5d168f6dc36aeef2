"""Picture files as arrays, by Pillow: every format that it reads by itself, in every mode.

A file is of the format that its content says, whatever its name; those that have no mark of their own (`UNMARKED`)
are read where the name says so. Left out are what runs another program (EPS: Ghostscript), what the system draws (WMF),
what Pillow recognises and
cannot read, and IM, which it gives up. Transparency is composed over white; palettes, CMYK, YCbCr, HSV and LAB
become RGB; Pillow reads 16-bit colour as 8-bit, and of an animation the first picture is the item.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = tuple(
    "PNG JPEG WEBP BMP TIFF PPM GIF AVIF JPEG2000 BLP CUR DCX DDS DIB FITS FLI FTEX GBR ICNS ICO MCIDAS MSP PCX PIXAR "
    "PSD QOI SGI SUN XBM XPM XVTHUMB".split()
)
UNMARKED = {".tga": "TGA", ".icb": "TGA", ".vda": "TGA", ".vst": "TGA", ".pcd": "PCD", ".spider": "SPIDER"}
SIXTEEN = "PNG", "PPM"  # whose 16-bit grey Pillow widens to 32
GREY = "1", "L", "LA", "La"
LARGEST = 89_478_485  # pixels of a picture: 256 MiB as RGB, where Pillow begins to warn


def decode(data: bytes | Path) -> np.ndarray:
    """A picture file as "h w c": 8-bit, or 16-bit and float where it is grey.

    Raises:
        ValueError: damaged, of no known format, or larger than `LARGEST`.
    """
    with _opened(data) as picture:
        if picture.width * picture.height > LARGEST:
            raise ValueError(f"{picture.width} x {picture.height} are more than {LARGEST:,} pixels; make it smaller")
        picture.load()
        mode = picture.mode
        if mode.startswith("I;16") or (mode == "I" and picture.format in SIXTEEN):
            return np.array(picture).astype(np.uint16)
        if mode in ("I", "F"):
            return np.array(picture)
        if mode == "LAB":
            picture = _from_lab(picture)
        plain = "L" if mode in GREY else "RGB"
        if mode in ("La", "RGBa"):  # colours times their opacity, which Pillow converts by one way only
            picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        if "A" in picture.mode.replace("LAB", "") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = _over_white(picture)
        return np.array(picture.convert(plain))


def is_grey(data: bytes | Path) -> bool:
    """Whether a picture file has one channel, by its header; a broken one is said when it is read."""
    try:
        with _opened(data) as picture:
            return picture.mode in GREY or picture.mode.startswith(("I", "F"))
    except Exception:  # whatever a decoder raises
        return True


def _over_white(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _opened(data: bytes | Path) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    named = UNMARKED.get(data.suffix.lower()) if isinstance(data, Path) else None
    formats = FORMATS if named is None else (*FORMATS, named)
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is damaged, or none of {', '.join(formats)}") from error


def _from_lab(picture: "Image.Image") -> "Image.Image":
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")
    assert shown is not None
    return shown
