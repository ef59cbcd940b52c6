"""Digit scenes: a segmentation task made of real digits on textured grounds, which needs no download."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import SEGMENTATION
from runner.data.digits import source_splits
from runner.data.splits import Split, TensorData, make_data

IMAGE_SIZE = 64
NUM_TRAIN, NUM_TEST = 2_000, 500
CLASS_NAMES = ("background", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUARTERS = 4  # of a scene, with at most one digit in each
STROKE = (
    0.4  # grey value from which a pixel is of the digit; not one of the source's, k/16, so that rounding decides none
)
EDGE = 0.3  # range of grey values in which a digit's colour passes into the ground's
NOISE_SIZES = (3, 8, 24)  # cells a side of the noise that makes a ground
CHUNK = 50  # scenes drawn at a time


def digit_scenes(
    *, crop_padding: int = 0, flip: bool = False, validation: float | str = 0.1, check_duplicates: bool | None = None
) -> TensorData:
    """2,000 training and 500 test scenes of 64x64 pixels with masks of 11 classes, the same ones each time.

    In each scene two to four of scikit-learn's digits (8x8) stand enlarged, turned and in bright colours before darker
    smooth noise and stripes, at most one in each quarter; where two meet, the later covers the earlier. Class 0 is the
    background and class 1 + d the strokes of the digit d. The digits of the test scenes are those of the data set
    `digits`' test split: none of them is in a training scene. Validation scenes show digits that training scenes show
    too.
    """
    generator = torch.Generator().manual_seed(0)
    train, test = source_splits()
    return make_data(
        "digit_scenes",
        _scenes(train, NUM_TRAIN, generator),
        _scenes(test, NUM_TEST, generator),
        num_classes=len(CLASS_NAMES),
        validation=validation,
        crop_padding=crop_padding,
        flip=flip,
        check_duplicates=check_duplicates,
        task=SEGMENTATION,
        class_names=CLASS_NAMES,
    )


def _scenes(source: Split, number: int, generator: torch.Generator) -> Split:
    """`number` scenes of digits drawn from `source`, with replacement: images and masks as bytes.

    In float64, so that no rounding to bytes depends on how a machine adds.
    """
    digits, classes = source.images.double(), source.targets + 1
    parts = [_chunk(digits, classes, min(CHUNK, number - start), generator) for start in range(0, number, CHUNK)]
    images, masks = (torch.cat(part) for part in zip(*parts, strict=True))
    return Split(images, masks)


def _chunk(digits: Tensor, classes: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images = _uniform((number, 3, 1, 1), 0.15, 0.45, generator) + _texture(number, generator)
    masks = torch.zeros(number, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    quarters = torch.rand((number, QUARTERS), generator=generator, dtype=torch.float64).argsort(1)
    counts = torch.randint(2, QUARTERS + 1, (number,), generator=generator)
    for place in range(QUARTERS):
        chosen = torch.randint(len(digits), (number,), generator=generator)
        grey = _placed(digits[chosen], quarters[:, place], generator)
        grey = grey * (place < counts)[:, None, None, None]
        ink = _uniform((number, 3, 1, 1), 0.55, 1, generator)
        opacity = ((grey - STROKE) / EDGE + 0.5).clamp(0, 1)
        images = images.lerp(ink, opacity)
        masks = torch.where(grey > STROKE, classes[chosen].to(torch.uint8)[:, None, None, None], masks)
    images = images + _uniform(images.shape, -0.05, 0.05, generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), masks.squeeze(1)


def _placed(digits: Tensor, quarters: Tensor, generator: torch.Generator) -> Tensor:
    """Grey values (N, 1, size, size) of digits (N, 1, 8, 8), each turned and enlarged about its quarter's middle."""
    number = len(digits)
    size = _uniform(number, 26, 38, generator) / IMAGE_SIZE  # of the digit's side, as a share of the scene
    angle = _uniform(number, -math.pi / 12, math.pi / 12, generator)
    middle = torch.stack([quarters % 2, quarters // 2], 1) - 0.5  # the scene is [-1, 1] each way
    middle = middle + _uniform((number, 2), -0.15, 0.15, generator)
    # affine_grid takes the map from the scene to the digit: the inverse of move, turn, scale
    cos, sin = angle.cos(), angle.sin()
    inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1) / size[:, None, None]
    shift = -(inverse @ middle[:, :, None])
    grid = F.affine_grid(torch.cat([inverse, shift], 2), [number, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    return F.grid_sample(digits, grid, mode="bicubic", align_corners=False)


def _texture(number: int, generator: torch.Generator) -> Tensor:
    """Smooth coloured noise of several sizes and stripes of one direction, (N, 3, size, size), around 0."""
    texture = _stripes(number, generator)
    for cells in NOISE_SIZES:
        noise = _uniform((number, 3, cells, cells), -0.12, 0.12, generator)
        texture = texture + F.interpolate(noise, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return texture


def _stripes(number: int, generator: torch.Generator) -> Tensor:
    """Waves (N, 3, size, size) of 5 to 16 pixels, of a direction, phase and colour of their own."""
    shape = (number, 1, 1, 1)
    angle, phase = (_uniform(shape, 0, 2 * math.pi, generator) for _ in range(2))
    frequency = 2 * math.pi / _uniform(shape, 5, 16, generator)
    strength = _uniform(shape, 0, 0.15, generator)
    pixel = torch.arange(IMAGE_SIZE, dtype=torch.float64)
    along = angle.cos() * pixel[None, None, None, :] + angle.sin() * pixel[None, None, :, None]
    return strength * _direction(number, generator) * torch.sin(frequency * along + phase)


def _direction(number: int, generator: torch.Generator) -> Tensor:
    """Directions (N, 3, 1, 1) in the space of colours, of length 1."""
    return F.normalize(_uniform((number, 3, 1, 1), -1, 1, generator), dim=1)


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
