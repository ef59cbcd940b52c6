"""Images from their files to uint8 tensors: reading, and the transforms of training and evaluation."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ExifTags, Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from runner.data.file_loader import Sample

MAX_ASPECT_RATIO = 100
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
DAMAGED_EXIF = (struct.error, OSError, SyntaxError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError)


class OddShape(ValueError):
    """The aspect ratio of an image is too large to resize it."""


def read_rgb(path: str) -> Image.Image:
    """Read an image file as RGB, turned upright by its EXIF orientation. Transparency is ignored.

    Raises PIL's errors, and those of `check_header`.
    """
    with Image.open(path) as image:
        check_header(image)
        # a palette with transparency goes through RGBA: else PIL warns
        source = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
        return upright(source.convert("RGB"), image)


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


def upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    """Transpose `pixels` by the EXIF orientation of the image file `source`; not if it has none, or a damaged one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of damaged EXIF
            turn = UPRIGHT_TRANSPOSE.get(source.getexif().get(ExifTags.Base.Orientation))
    except DAMAGED_EXIF:
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


@dataclass(frozen=True)
class LoadImage:
    """Reads and transforms the image of a sample (path, class)."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        path, target = sample
        return self.transform(read_rgb(path)), target


def train_transform(
    *,
    image_size: int,
    scale_min: float,
    flip: bool,
    rand_augment_layers: int,
    rand_augment_magnitude: int,
    random_erasing: float,
    interpolation: str,
    fill: tuple[int, int, int],
) -> nn.Module:
    """From a PIL image to a uint8 tensor (3, `image_size`, `image_size`).

    A resized crop of a share in [`scale_min`, 1] of the area and an aspect ratio in [3/4, 4/3] (arXiv 1409.4842);
    mirrored with probability 1/2; RandAugment (arXiv 1909.13719) of `rand_augment_layers` operations at a magnitude of
    0 to 30; a rectangle erased with probability `random_erasing` (arXiv 1708.04896). Erased pixels, and those from
    outside the image, get the mean colour `fill`, which is 0 after normalization.
    """
    mode = InterpolationMode(interpolation)
    steps: list[nn.Module] = [v2.RandomResizedCrop(image_size, scale=(scale_min, 1.0), interpolation=mode)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if rand_augment_layers:
        strength = {"num_ops": rand_augment_layers, "magnitude": rand_augment_magnitude}
        steps.append(v2.RandAugment(**strength, interpolation=mode, fill=list(fill)))
    steps.append(v2.PILToTensor())
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=list(fill)))
    return v2.Compose(steps)


def evaluation_transform(*, size: int, resize: int, interpolation: str) -> nn.Module:
    """From a PIL image to a uint8 tensor (3, `size`, `size`): the shorter side to `resize`, then the centre."""
    resized = v2.Resize(resize, interpolation=InterpolationMode(interpolation))
    return v2.Compose([resized, v2.CenterCrop(size), v2.PILToTensor()])
