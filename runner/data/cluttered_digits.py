"""Cluttered digits: a classification task made of real digits that is hard enough to tell methods apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.digits import source_splits
from runner.data.splits import Split, TensorData, make_data

IMAGE_SIZE = 32  # of the canvas
SIZES = (8, 16, IMAGE_SIZE)
NUM_TRAIN, NUM_TEST = 10_000, 2_000
NUM_STROKES = 6
NOISE = 0.15  # standard deviation, of a range of 1
CHUNK = 1_000  # images drawn at a time


def cluttered_digits(*, image_size: int = IMAGE_SIZE, channels: int = 3, **settings: Any) -> TensorData:
    """10,000 training and 2,000 test images of 32x32 pixels in 10 classes, the same in each call.

    Each shows one of scikit-learn's digits (8x8), randomly enlarged, rotated, sheared and moved, under six random
    strokes and Gaussian noise. Test images show digits of the test split of `digits`, which no training image shows;
    validation images share digits with training images.

    An `image_size` of 16 or 8 averages 2x2 or 4x4 pixels. ValueError for any other size. The `channels` are equal. See
    `make_data` for `settings`.
    """
    if image_size not in SIZES:
        raise ValueError(
            f"dataset.image_size={image_size}: cluttered_digits come in {', '.join(map(str, SIZES))} pixels."
        )
    generator = torch.Generator().manual_seed(0)
    train, test = source_splits()
    return make_data(
        "cluttered_digits",
        _cluttered(train, NUM_TRAIN, image_size, generator).with_channels(channels),
        _cluttered(test, NUM_TEST, image_size, generator).with_channels(channels),
        num_classes=10,
        **settings,
    )


def _cluttered(source: Split, number: int, image_size: int, generator: torch.Generator) -> Split:
    """`number` images of digits drawn from `source` with replacement, uint8, grey."""
    chosen = torch.randint(len(source), (number,), generator=generator)
    parts = []
    for indices in chosen.split(CHUNK):
        images = _placed(source.images[indices], generator)
        images = torch.maximum(images, _strokes(len(indices), generator))
        images = images + NOISE * torch.randn(images.shape, generator=generator, dtype=images.dtype)
        images = F.avg_pool2d(images.clamp(0, 1), IMAGE_SIZE // image_size)
        parts.append((images * 255).round().to(torch.uint8))
    return Split(torch.cat(parts), source.targets[chosen])


def _placed(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Digits (N, 1, 8, 8) on a canvas of `IMAGE_SIZE`, each under a random affine map."""
    number = len(digits)
    size = _uniform(number, 0.45, 0.75, generator)  # of the digit, as a share of the canvas
    angle = _uniform(number, -math.pi / 7, math.pi / 7, generator)
    shear = _uniform(number, -0.3, 0.3, generator)
    x, y = (_uniform(number, -1, 1, generator) * (1 - size) for _ in range(2))  # the digit's centre in [-1, 1]
    # affine_grid takes the inverse map, from the canvas to the digit
    cos, sin = angle.cos(), angle.sin()
    inverse = torch.stack([torch.stack([cos - shear * -sin, sin - shear * cos], 1), torch.stack([-sin, cos], 1)], 1)
    inverse = inverse / size[:, None, None]
    shift = -(inverse @ torch.stack([x, y], 1)[:, :, None])
    grid = F.affine_grid(torch.cat([inverse, shift], 2), [number, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    brightness = _uniform(number, 0.6, 1.0, generator)[:, None, None, None]
    return F.grid_sample(digits, grid, align_corners=False) * brightness


def _strokes(number: int, generator: torch.Generator) -> Tensor:
    """Images (N, 1, size, size) of straight strokes, about as wide and bright as those of digits."""
    shape = (number, NUM_STROKES)
    start_x, start_y = (_uniform(shape, 0, IMAGE_SIZE, generator) for _ in range(2))
    angle, length = _uniform(shape, 0, 2 * math.pi, generator), _uniform(shape, 5, 14, generator)
    width, brightness = _uniform(shape, 0.7, 1.3, generator), _uniform(shape, 0.5, 1.0, generator)
    pixel = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    dx = pixel[None, None, None, :] - start_x[:, :, None, None]
    dy = pixel[None, None, :, None] - start_y[:, :, None, None]
    cos, sin, length, width, brightness = (
        t[:, :, None, None] for t in (angle.cos(), angle.sin(), length, width, brightness)
    )
    along = (dx * cos + dy * sin).clamp(min=0).minimum(length)
    distance_squared = (dx - along * cos) ** 2 + (dy - along * sin) ** 2
    return (brightness * torch.exp(-distance_squared / (2 * width**2))).amax(1, keepdim=True)


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32) * (high - low) + low
