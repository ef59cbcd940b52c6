"""Images from their files: pixels as PIL images or as tensors, turned upright, or why they cannot be read."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision import io
from torchvision.transforms.v2.functional import pil_to_tensor

MAX_ASPECT_RATIO = 100
MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels
READ_MODES = {1: io.ImageReadMode.GRAY, 3: io.ImageReadMode.RGB}
DAMAGED_EXIF = (struct.error, OSError, SyntaxError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError)
# EXIF orientation -> the transpose that turns the pixels upright
UPRIGHT_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# the same of tensors (C, H, W): whether rows and columns change places first, and the dimensions that are flipped then
UPRIGHT_FLIPS = {2: (False, [2]), 3: (False, [1, 2]), 4: (False, [1])}
UPRIGHT_FLIPS |= {5: (True, []), 6: (True, [2]), 7: (True, [1, 2]), 8: (True, [1])}

# torchvision's decoders give PIL's pixels, bit for bit. Its decoder of PNG is not among them: a damaged file kills it.
# All of them are deprecated in favour of torchcodec: where they are gone, PIL decodes.
NAMES = {"JPEG": "decode_jpeg", "MPO": "decode_jpeg", "WEBP": "decode_webp"}
DECODERS: dict[str | None, Callable[..., Tensor]] = {
    kind: getattr(io, name) for kind, name in NAMES.items() if hasattr(io, name)
}
LIBJPEG_WARNINGS = (
    b"Corrupt JPEG data",
    b"Premature end of JPEG",
    b"Invalid SOS parameters",
    b"Inconsistent progression",
    b"Unknown Adobe color transform",
    b"Warning: unknown JFIF revision",
)


class OddShape(ValueError):
    """The aspect ratio of an image is too large to resize it."""


@dataclass(frozen=True)
class ImageReader:
    """Reads images, grey or as RGB, turned upright by their EXIF orientation. Transparency is ignored.

    `decode` is "pil", for PIL images, or "torchvision", for uint8 tensors (C, H, W) of the same pixels. An image comes
    as a path, as the bytes of a file, or decoded by PIL. Raises PIL's errors, and those of `check_header`.
    """

    channels: int = 3
    decode: str = "pil"

    def __call__(self, source: str | bytes | Image.Image) -> Image.Image | Tensor:
        if isinstance(source, Image.Image):
            return self._read(source)
        encoded = source
        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                encoded = file.read()
        try:
            opened = Image.open(BytesIO(encoded))
        except UnidentifiedImageError:
            opened = Image.open(source)  # whose error names the file
        with opened as image:
            return self._read(image, encoded)

    def _read(self, image: Image.Image, encoded: bytes | None = None) -> Image.Image | Tensor:
        if self.decode == "pil":
            return as_pixels(image, self.channels)
        check_header(image)
        pixels = decoded(image, encoded, self.channels) if encoded and image.format in DECODERS else None
        return pil_to_tensor(as_pixels(image, self.channels)) if pixels is None else upright_tensor(pixels, image)


def read_image(path: str, channels: int = 3) -> Image.Image:
    """Read an image file with PIL. Raises PIL's errors, and those of `check_header`."""
    return ImageReader(channels)(path)


def as_pixels(image: Image.Image, channels: int) -> Image.Image:
    """What `read_image` makes of an open image file."""
    check_header(image)
    # a palette with transparency goes through RGBA: else PIL warns
    source = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return upright(source.convert(MODES[channels]), image)


def check_header(image: Image.Image) -> None:
    """Raise ValueError for more than 8 bits per channel, which PIL would clip; OddShape for a large aspect ratio."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"more than 8 bits a channel (mode {image.mode}); convert it, as ImageMagick's `mogrify -depth 8` does"
        )
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        width, height = image.size
        raise OddShape(
            f"{width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other; crop or remove it"
        )


def decoded(image: Image.Image, encoded: bytes, channels: int) -> Tensor | None:
    """The pixels of an open file with the content `encoded`, by torchvision. None for what is PIL's to read or refuse.

    A colour photo is read as grey by PIL, which rounds otherwise than libjpeg; CMYK and animations are PIL's too.
    """
    if image.mode not in (MODES[channels], "L") or (image.format == "WEBP" and image.is_animated):
        return None
    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)  # of bytes themselves torch warns
    try:
        with without_libjpeg_warnings():
            return DECODERS[image.format](data, mode=READ_MODES[channels])
    except RuntimeError:
        return None


def orientation(source: Image.Image) -> int | None:
    """The EXIF orientation of an image file; None if it has none, or a damaged one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of damaged EXIF
            return source.getexif().get(ExifTags.Base.Orientation)
    except DAMAGED_EXIF:
        return None


def upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    """Transpose `pixels` by the EXIF orientation of the image file `source`."""
    turn = UPRIGHT_TRANSPOSE.get(orientation(source))
    return pixels if turn is None else pixels.transpose(turn)


def upright_tensor(pixels: Tensor, source: Image.Image) -> Tensor:
    """`upright` of a tensor (C, H, W)."""
    return turned(pixels, orientation(source))


def turned(pixels: Tensor, orientation: int | None) -> Tensor:
    """A tensor (C, H, W) turned upright by its EXIF orientation."""
    is_transposed, flipped = UPRIGHT_FLIPS.get(orientation, (False, []))
    pixels = pixels.mT if is_transposed else pixels
    return pixels.flip(flipped) if flipped else pixels


@contextmanager
def without_libjpeg_warnings() -> Iterator[None]:
    """Withhold what libjpeg says of slightly damaged files, which it writes to the process's standard error.

    What other threads write there meanwhile comes a little later.
    """
    try:
        stderr, caught = os.dup(2), os.memfd_create("stderr")
    except (OSError, AttributeError):  # without a standard error; on another system than Linux
        yield
        return
    os.dup2(caught, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        for line in os.pread(caught, 2**20, 0).splitlines(keepends=True):
            if not line.startswith(LIBJPEG_WARNINGS):
                os.write(2, line)
        os.close(stderr)
        os.close(caught)
