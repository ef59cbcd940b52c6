"""Scenes of small images as objects on textured grounds, for segmentation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.splits import Split

IMAGE_SIZE = 64
QUARTERS = 4  # of a scene, with at most one object in each
EDGE_WIDTH = 0.3  # range of values that blends an object into the background
SHADING = 0.5  # by how much an object's darkest part is darker than its brightest
NOISE_SIZES = (3, 8, 24)  # cells per side
CHUNK = 50  # scenes drawn at a time


def draw_scenes(
    source: Split, number: int, generator: torch.Generator, *, threshold: float, sides: tuple[int, int]
) -> Split:
    """`number` scenes (3, 64, 64) and their masks, as bytes, of two to four objects drawn with replacement.

    At most one object in each quarter, enlarged to a side drawn from `sides`, rotated, over darker noise and stripes.
    `source` holds square images (N, 1, S, S), bytes or in [0, 1], whose part above `threshold` is the object, in one
    bright colour; or (N, 2, S, S), whose second channel is the object's shading. Class 0 is the background, class 1 + c
    an object of class c. Computed in float64 to be portable.
    """
    objects, how = Split(source.images, source.targets + 1), {"threshold": threshold, "sides": sides}
    starts = range(0, number, CHUNK)
    parts = [_chunk(objects, min(CHUNK, number - start), generator, **how) for start in starts]
    images, masks = (torch.cat(part) for part in zip(*parts, strict=True))
    return Split(images, masks)


def _chunk(
    objects: Split, number: int, generator: torch.Generator, *, threshold: float, sides: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    images = _uniform((number, 3, 1, 1), 0.15, 0.45, generator) + _texture(number, generator)
    masks = torch.zeros(number, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    quarters = torch.rand((number, QUARTERS), generator=generator, dtype=torch.float64).argsort(1)
    counts = torch.randint(2, QUARTERS + 1, (number,), generator=generator)
    for place in range(QUARTERS):
        chosen = torch.randint(len(objects), (number,), generator=generator)
        drawn = objects.part(chosen)
        values = drawn.images.double() / (255 if drawn.images.dtype == torch.uint8 else 1)
        grey, *shading = _placed(values, quarters[:, place], sides, generator).split(1, dim=1)
        grey = grey * (place < counts)[:, None, None, None]
        colour = _uniform((number, 3, 1, 1), 0.55, 1, generator)
        for each in shading:
            colour = colour * (1 - SHADING + SHADING * each)
        opacity = ((grey - threshold) / EDGE_WIDTH + 0.5).clamp(0, 1)
        images = images.lerp(colour, opacity)
        masks = torch.where(grey > threshold, drawn.targets.to(torch.uint8)[:, None, None, None], masks)
    images = images + _uniform(images.shape, -0.05, 0.05, generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), masks.squeeze(1)


def _placed(objects: Tensor, quarters: Tensor, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Values (N, C, size, size) of objects (N, C, S, S), rotated and enlarged about their quarters' centres."""
    number, channels = objects.shape[:2]
    size = _uniform(number, *sides, generator) / IMAGE_SIZE  # of the object's side, as a share of the scene
    angle = _uniform(number, -math.pi / 12, math.pi / 12, generator)
    middle = torch.stack([quarters % 2, quarters // 2], 1) - 0.5  # the scene is [-1, 1] each way
    middle = middle + _uniform((number, 2), -0.15, 0.15, generator)
    # affine_grid takes the inverse map, from the scene to the object
    cos, sin = angle.cos(), angle.sin()
    inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1) / size[:, None, None]
    shift = -(inverse @ middle[:, :, None])
    grid = F.affine_grid(
        torch.cat([inverse, shift], 2), [number, channels, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
    )
    return F.grid_sample(objects, grid, mode="bicubic", align_corners=False)


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
