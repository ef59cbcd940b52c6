"""Transforms of a scene, image and mask together.

Images are uint8 (C, H, W), masks uint8 (H, W) of class indices and `IGNORE_INDEX`. Random numbers come from torch's
global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomPhotometricDistort
from torchvision.transforms.v2 import functional as F

from runner.data.dataset import IGNORE_INDEX, sides_of

CROP_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Random scale, random crop of `image_size`, random mirroring, photometric distortion, then padding.

    `image_size` is one number of pixels, or (height, width). A scene smaller than the crop is padded at the right and
    the bottom: the image with the colour `fill` (bytes), the mask with `IGNORE_INDEX`.
    """

    image_size: int | Sequence[int]
    fill: tuple[int, ...]
    scale_min: float = 0.5
    scale_max: float = 2.0
    max_class_share: float = 0.75
    flip: bool = True
    photometric: bool = True

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = random_scale(image, mask, self.scale_min, self.scale_max)
        image, mask = random_crop(image, mask, self.image_size, self.max_class_share)
        if self.flip and torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        if self.photometric:
            image = PhotometricDistortion()(image)
        return pad(image, mask, self.image_size, self.fill)


@dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """Resizes the shorter side of the image to `test_size`, unless it is None; the mask keeps its resolution."""

    test_size: int | None = None

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.test_size is None:
            return image, mask
        return F.resize(image, _scaled_size(image, self.test_size / min(image.shape[1:]))), mask


class PhotometricDistortion(RandomPhotometricDistort):
    """SSD's distortion of colours (arXiv 1512.02325), as used in segmentation: without a permutation of channels.

    Each with probability 1/2: brightness within 1 +- 32/255, contrast (first or last) and saturation within 1 +- 0.5,
    hue within 18 of 360 degrees.
    """

    def __init__(self) -> None:
        super().__init__((1 - 32 / 255, 1 + 32 / 255), (0.5, 1.5), (0.5, 1.5), (-18 / 360, 18 / 360))

    def make_params(self, flat_inputs: list[Tensor]) -> dict[str, object]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


def random_scale(image: Tensor, mask: Tensor, scale_min: float, scale_max: float) -> tuple[Tensor, Tensor]:
    """Scale a scene by a factor drawn uniformly from [scale_min, scale_max].

    The image is interpolated bilinearly with antialiasing, the mask by its nearest pixel centres.
    """
    size = _scaled_size(image, torch.empty(()).uniform_(scale_min, scale_max).item())
    mask = F.resize(mask.unsqueeze(0), size, interpolation=InterpolationMode.NEAREST_EXACT).squeeze(0)
    return F.resize(image, size), mask


def random_crop(
    image: Tensor, mask: Tensor, size: int | Sequence[int], max_class_share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Crop a random window of `size`, one number or (height, width), or of the whole side if the scene is smaller.

    Draws up to `CROP_ATTEMPTS` windows until one has labelled pixels, at most `max_class_share` of them of one class.
    Takes the last one otherwise, and the first one for a share of 1.
    """
    height, width = map(min, sides_of(size), mask.shape)
    for _ in range(CROP_ATTEMPTS):
        top = int(torch.randint(mask.shape[0] - height + 1, ()))
        left = int(torch.randint(mask.shape[1] - width + 1, ()))
        window = mask[top : top + height, left : left + width]
        if max_class_share >= 1:
            break
        counts = window.flatten().bincount(minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        if 0 < counts.max() <= max_class_share * counts.sum():
            break
    return image[:, top : top + height, left : left + width], window


def pad(image: Tensor, mask: Tensor, size: int | Sequence[int], fill: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Pad a scene at the right and bottom to `size`, one number or (height, width), the mask with `IGNORE_INDEX`."""
    height, width = mask.shape
    border = [0, 0, sides_of(size)[1] - width, sides_of(size)[0] - height]
    return F.pad(image, border, fill=list(fill)), F.pad(mask.unsqueeze(0), border, fill=IGNORE_INDEX).squeeze(0)


def _scaled_size(image: Tensor, scale: float) -> list[int]:
    return [max(1, round(side * scale)) for side in image.shape[1:]]
