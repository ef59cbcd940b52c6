"""Images from their files to uint8 tensors: reading, and the transforms of training and evaluation."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import ExifTags, Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from runner.config.text import to_override
from runner.data.dataset import sides_of
from runner.data.file_loader import Sample

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ASPECT_RATIO = 100
MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels
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


class Normalizing(NamedTuple):
    """Mean and standard deviation of the channels in [0, 1], and the mean as a colour of bytes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: tuple[int, ...]


def normalizing(channels: int, mean: Sequence[float], std: Sequence[float]) -> Normalizing:
    """The statistics of `channels`: 3, or 1 for grey images, which get the average of those of three.

    Raises ValueError unless there is one number in [0, 1] for each channel, and no deviation is 0.
    """
    if channels == 1 and len(mean) == len(std) == 3:
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(0 <= value <= 1 for value in values) or (key == "std" and 0 in values):
            raise ValueError(
                f"dataset.{key}={list(values)}: it must be {channels} number{'s' if channels > 1 else ''} of the range "
                f"0 to 1{', none of them 0' if key == 'std' else ''}, as dataset.channels={channels}."
            )
    return Normalizing(tuple(mean), tuple(std), tuple(round(255 * value) for value in mean))


class OddShape(ValueError):
    """The aspect ratio of an image is too large to resize it."""


def read_image(path: str, channels: int = 3) -> Image.Image:
    """Read an image file, grey or as RGB, turned upright by its EXIF orientation. Transparency is ignored.

    Raises PIL's errors, and those of `check_header`.
    """
    with Image.open(path) as image:
        return as_pixels(image, channels)


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
    channels: int = 3

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        path, target = sample
        return self.transform(read_image(path, self.channels)), target


class ImageTransforms(NamedTuple):
    """From a PIL image to a uint8 tensor (C, H, W), in training and in evaluation; and the channels' statistics."""

    train: nn.Module
    evaluation: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_transforms(
    *,
    image_size: int | Sequence[int] = 224,
    test_size: int | Sequence[int] = 224,
    test_resize: int = 256,
    scale_min: float = 0.08,
    flip: bool = True,
    rand_augment_layers: int = 0,
    rand_augment_magnitude: int = 0,
    random_erasing: float = 0.0,
    interpolation: str = "bilinear",
    channels: int = 3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ImageTransforms:
    """Those of `train_transform` and `evaluation_transform`. Raises ValueError for settings that do not fit."""
    colours = normalizing(channels, mean, std)
    if test_resize < (side := min(sides_of(test_size))):
        raise ValueError(
            f"dataset.test_resize={test_resize}: smaller than the crop of it, dataset.test_size="
            f"{to_override(test_size)}. Choose {side} or more; {side + 32} is usual."
        )
    if scale_min > 1:
        raise ValueError(f"dataset.scale_min={scale_min}: it is a share of the image's area, at most 1. Lower it.")
    train = train_transform(
        image_size=image_size,
        scale_min=scale_min,
        flip=flip,
        rand_augment_layers=rand_augment_layers,
        rand_augment_magnitude=rand_augment_magnitude,
        random_erasing=random_erasing,
        interpolation=interpolation,
        fill=colours.fill,
    )
    evaluation = evaluation_transform(size=test_size, resize=test_resize, interpolation=interpolation)
    return ImageTransforms(train, evaluation, colours.mean, colours.std)


def train_transform(
    *,
    image_size: int | Sequence[int],
    scale_min: float,
    flip: bool,
    rand_augment_layers: int,
    rand_augment_magnitude: int,
    random_erasing: float,
    interpolation: str,
    fill: tuple[int, ...],
) -> nn.Module:
    """From a PIL image to a uint8 tensor (C, H, W) of `image_size`: (H, W), or one number for both.

    A resized crop of a share in [`scale_min`, 1] of the area and an aspect ratio in [3/4, 4/3] (arXiv 1409.4842);
    mirrored with probability 1/2; RandAugment (arXiv 1909.13719) of `rand_augment_layers` operations at a magnitude of
    0 to 30; a rectangle erased with probability `random_erasing` (arXiv 1708.04896). Erased pixels, and those from
    outside the image, get the mean colour `fill`, which is 0 after normalization.
    """
    mode = InterpolationMode(interpolation)
    steps: list[nn.Module] = [v2.RandomResizedCrop(sides_of(image_size), scale=(scale_min, 1.0), interpolation=mode)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if rand_augment_layers:
        strength = {"num_ops": rand_augment_layers, "magnitude": rand_augment_magnitude}
        steps.append(v2.RandAugment(**strength, interpolation=mode, fill=list(fill)))
    steps.append(v2.PILToTensor())
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=list(fill)))
    return v2.Compose(steps)


def evaluation_transform(*, size: int | Sequence[int], resize: int, interpolation: str) -> nn.Module:
    """From a PIL image to a uint8 tensor (C, H, W) of `size`: (H, W), or one number for both.

    The image is resized to cover the crop enlarged so that its shorter side is `resize`, and its centre is cropped. For
    a square crop that makes the shorter side `resize`.
    """
    mode, (height, width) = InterpolationMode(interpolation), sides_of(size)
    resized = v2.Resize(resize, interpolation=mode)
    if height != width:
        scale = resize / min(height, width)
        resized = ResizeToCover(round(height * scale), round(width * scale), mode)
    return v2.Compose([resized, v2.CenterCrop((height, width)), v2.PILToTensor()])


class ResizeToCover(nn.Module):
    """Resizes a PIL image to the smallest size, in its own aspect ratio, that covers `height` x `width` pixels."""

    def __init__(self, height: int, width: int, interpolation: InterpolationMode) -> None:
        super().__init__()
        self.height, self.width, self.interpolation = height, width, interpolation

    def forward(self, image: Image.Image) -> Image.Image:
        scale = max(self.height / image.height, self.width / image.width)
        size = [max(self.height, round(image.height * scale)), max(self.width, round(image.width * scale))]
        return v2.functional.resize(image, size, interpolation=self.interpolation)
