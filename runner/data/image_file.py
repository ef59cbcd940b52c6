"""An image's file: how it is read, and which ones are not."""

from __future__ import annotations

import struct
import warnings

from PIL import ExifTags, Image

MAX_ASPECT_RATIO = 100
# EXIF's orientation -> what brings the pixels upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGED_EXIF = (struct.error, OSError, SyntaxError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError)


class OddShape(ValueError):
    """An image is so narrow that resizing it would fill the memory with nothing worth to see."""


def read_rgb(path: str) -> Image.Image:
    """An image file as RGB, upright as its EXIF orientation says; its transparency is ignored.

    Raises what PIL does if it cannot be read, and what `check_header` does.
    """
    with Image.open(path) as image:
        check_header(image)
        # a palette with transparency by way of RGBA: else PIL warns of each such file
        by_way_of = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
        return upright(by_way_of.convert("RGB"), image)


def check_header(image: Image.Image) -> None:
    """Raise a ValueError if a channel has more than 8 bits, which PIL would clip; OddShape if a side is far longer."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"more than 8 bits a channel (mode {image.mode}); convert it, as ImageMagick's `mogrify -depth 8` does"
        )
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        width, height = image.size
        raise OddShape(
            f"{width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other; crop or remove it"
        )


def upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    """`pixels` turned and mirrored as the EXIF orientation of `source` says, an image file whose pixels were read.

    A camera keeps them as its sensor lay, and this beside them. Without one, or with a damaged one, they stay.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of damaged EXIF
            turn = TURNS.get(source.getexif().get(ExifTags.Base.Orientation))
    except DAMAGED_EXIF:
        return pixels
    return pixels if turn is None else pixels.transpose(turn)
