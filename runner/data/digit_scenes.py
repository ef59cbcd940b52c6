"""Digit scenes: a segmentation task made of real digits on textured grounds, which needs no download."""

from __future__ import annotations

import math
from typing import Any

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
STROKE_THRESHOLD = 0.4  # grey value of a digit's pixels; no source value k/16 equals it, so rounding decides none
EDGE_WIDTH = 0.3  # range of grey values that blends a digit into the background
NOISE_SIZES = (3, 8, 24)  # cells per side
CHUNK = 50  # scenes drawn at a time


def digit_scenes(**settings: Any) -> TensorData:
    """2,000 training and 500 test scenes of 64x64 pixels with masks of 11 classes, the same in each call.

    Each shows two to four of scikit-learn's digits (8x8), enlarged, rotated and in bright colours, at most one in each
    quarter, over darker noise and stripes. Class 0 is the background, class 1 + d the strokes of digit d. Test scenes
    show digits of the test split of `digits`, which no training scene shows; validation scenes share digits with
    training scenes. See `make_data` for `settings`.
    """
    generator = torch.Generator().manual_seed(0)
    train, test = source_splits()
    return make_data(
        "digit_scenes",
        _scenes(train, NUM_TRAIN, generator),
        _scenes(test, NUM_TEST, generator),
        num_classes=len(CLASS_NAMES),
        task=SEGMENTATION,
        class_names=CLASS_NAMES,
        **settings,
    )


def _scenes(source: Split, number: int, generator: torch.Generator) -> Split:
    """`number` scenes of digits drawn from `source` with replacement, as bytes; computed in float64 to be portable."""
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
        opacity = ((grey - STROKE_THRESHOLD) / EDGE_WIDTH + 0.5).clamp(0, 1)
        images = images.lerp(ink, opacity)
        masks = torch.where(grey > STROKE_THRESHOLD, classes[chosen].to(torch.uint8)[:, None, None, None], masks)
    images = images + _uniform(images.shape, -0.05, 0.05, generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), masks.squeeze(1)


def _placed(digits: Tensor, quarters: Tensor, generator: torch.Generator) -> Tensor:
    """Grey values (N, 1, size, size) of digits (N, 1, 8, 8), rotated and enlarged about their quarters' centres."""
    number = len(digits)
    size = _uniform(number, 26, 38, generator) / IMAGE_SIZE  # of the digit's side, as a share of the scene
    angle = _uniform(number, -math.pi / 12, math.pi / 12, generator)
    middle = torch.stack([quarters % 2, quarters // 2], 1) - 0.5  # the scene is [-1, 1] each way
    middle = middle + _uniform((number, 2), -0.15, 0.15, generator)
    # affine_grid takes the inverse map, from the scene to the digit
    cos, sin = angle.cos(), angle.sin()
    inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1) / size[:, None, None]
    shift = -(inverse @ middle[:, :, None])
    grid = F.affine_grid(torch.cat([inverse, shift], 2), [number, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    return F.grid_sample(digits, grid, mode="bicubic", align_corners=False)


def _texture(number: int, generator: torch.Generator) -> Tensor:
    """Smooth coloured noise and stripes, (N, 3, size, size), around 0."""
    texture = _stripes(number, generator)
    for cells in NOISE_SIZES:
        noise = _uniform((number, 3, cells, cells), -0.12, 0.12, generator)
        texture = texture + F.interpolate(noise, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return texture


def _stripes(number: int, generator: torch.Generator) -> Tensor:
    """Waves (N, 3, size, size) of 5 to 16 pixels, each of random direction, phase and colour."""
    shape = (number, 1, 1, 1)
    angle, phase = (_uniform(shape, 0, 2 * math.pi, generator) for _ in range(2))
    frequency = 2 * math.pi / _uniform(shape, 5, 16, generator)
    strength = _uniform(shape, 0, 0.15, generator)
    pixel = torch.arange(IMAGE_SIZE, dtype=torch.float64)
    along = angle.cos() * pixel[None, None, None, :] + angle.sin() * pixel[None, None, :, None]
    return strength * _direction(number, generator) * torch.sin(frequency * along + phase)


def _direction(number: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (N, 3, 1, 1) in colour space."""
    return F.normalize(_uniform((number, 3, 1, 1), -1, 1, generator), dim=1)


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
