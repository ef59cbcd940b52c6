"""Random erasing (arXiv 1708.04896) of a whole batch on its device, with torchvision's ranges of sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

AREA = (0.02, 0.33)  # of a rectangle, as a share of the image's
ASPECT_RATIO = (0.3, 3.3)  # height / width
ATTEMPTS = 10  # to draw a rectangle that fits


def draw_rectangles(number: int, height: int, width: int, probability: float, generator: torch.Generator) -> Tensor:
    """Rectangles (4, `number`) to erase: top, left, height, width. 0 x 0 for an image that stays whole.

    With `probability` an image has one: its area uniform in `AREA`, the logarithm of its aspect ratio uniform in
    `ASPECT_RATIO`, its place uniform. One that does not fit is drawn anew, up to `ATTEMPTS` times.
    """
    uniform = torch.rand(2, ATTEMPTS, number, generator=generator)
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * uniform[0])
    low, high = map(math.log, ASPECT_RATIO)
    ratio = (low + (high - low) * uniform[1]).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).round().long()
    fits = (sides[0] < height) & (sides[1] < width)
    first = fits.int().argmax(0)  # 0 where none does
    chosen = sides.gather(1, first.expand(2, 1, -1)).squeeze(1)
    place, probabilities = torch.rand(2, number, generator=generator), torch.rand(number, generator=generator)
    room = torch.tensor([[height], [width]]) - chosen + 1
    erased = fits.any(0) & (probabilities < probability)
    return torch.cat([(place * room).long(), chosen]) * erased


def erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Images (B, C, H, W) with 0, the mean of normalized images, in their rectangles (4, B) of `draw_rectangles`."""
    top, left, height, width = rectangles[:, :, None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
