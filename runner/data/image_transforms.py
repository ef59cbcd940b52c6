"""Images to uint8 tensors: the transforms of training and evaluation.

They take PIL images and uint8 tensors (C, H, W). Both give the same but for the rounding of the resampling: a tensor's
is the faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from runner.config.text import to_override
from runner.data.dataset import sides_of
from runner.data.file_loader import Sample
from runner.data.image_reading import ImageReader

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


@dataclass(frozen=True)
class LoadImage:
    """Reads and transforms the image of a sample (path, class)."""

    transform: Callable[[Image.Image | Tensor], Tensor]
    read: ImageReader

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        path, target = sample
        return self.transform(self.read(path)), target


class ImageTransforms(NamedTuple):
    """From an image to a uint8 tensor (C, H, W), in training and in evaluation; how images are read; statistics."""

    train: nn.Module
    evaluation: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: ImageReader


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
    decode: str = "pil",  # as settings have it that were stored before there was a choice
    may_decode_later: bool = False,
) -> ImageTransforms:
    """Those of `train_transform` and `evaluation_transform`. Raises ValueError for settings that do not fit.

    decode="cuda" is for a caller that decodes a batch at once, as `may_decode_later` says.
    """
    if decode == "cuda" and not may_decode_later:
        raise ValueError("dataset.decode=cuda: only image_folder and imagenet have it. Use dataset.decode=torchvision.")
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
        augments_tensors=decode == "cuda",
    )
    evaluation = evaluation_transform(size=test_size, resize=test_resize, interpolation=interpolation)
    return ImageTransforms(train, evaluation, colours.mean, colours.std, ImageReader(channels, decode))


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
    augments_tensors: bool = False,
) -> nn.Module:
    """From an image to a uint8 tensor (C, H, W) of `image_size`: (H, W), or one number for both.

    A resized crop of a share in [`scale_min`, 1] of the area and an aspect ratio in [3/4, 4/3] (arXiv 1409.4842);
    mirrored with probability 1/2; RandAugment (arXiv 1909.13719) of `rand_augment_layers` operations at a magnitude of
    0 to 30; a rectangle erased with probability `random_erasing` (arXiv 1708.04896). Erased pixels, and those from
    outside the image, get the mean colour `fill`, which is 0 after normalization.
    """
    mode = InterpolationMode(interpolation)
    steps: list[nn.Module] = [RandomResizedCrop(sides_of(image_size), scale=(scale_min, 1.0), interpolation=mode)]
    if flip:
        steps.append(RandomHorizontalFlip())
    if rand_augment_layers:
        strength = {"num_ops": rand_augment_layers, "magnitude": rand_augment_magnitude}
        if not augments_tensors:  # the operations on tensors differ a little
            steps.append(v2.ToPILImage())  # of a small image at this place
        steps.append(v2.RandAugment(**strength, interpolation=mode, fill=list(fill)))
    steps.append(PILToTensor())
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=list(fill)))
    return v2.Compose(steps)


def evaluation_transform(*, size: int | Sequence[int], resize: int, interpolation: str) -> nn.Module:
    """From an image to a uint8 tensor (C, H, W) of `size`: (H, W), or one number for both.

    The image is resized to cover the crop enlarged so that its shorter side is `resize`, and its centre is cropped. For
    a square crop that makes the shorter side `resize`.
    """
    mode, (height, width) = InterpolationMode(interpolation), sides_of(size)
    resized = v2.Resize(resize, interpolation=mode)
    if height != width:
        scale = resize / min(height, width)
        resized = ResizeToCover(round(height * scale), round(width * scale), mode)
    return v2.Compose([resized, v2.CenterCrop((height, width)), PILToTensor()])


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, with less around the same calls for a uint8 tensor on the CPU; the draws are the same."""

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        if not isinstance(image, Tensor) or image.is_cuda:
            return super().forward(image)
        top, left, height, width = self.make_params([image]).values()
        # decoders give channels last; with a batch dimension of the stride that torch expects, it is seen to be so
        crop = image.permute(1, 2, 0)[top : top + height, left : left + width].unsqueeze(0).permute(0, 3, 1, 2)
        return F.interpolate(crop, self.size, mode=self.interpolation.value, antialias=True).squeeze(0)


class RandomHorizontalFlip(v2.RandomHorizontalFlip):
    """torchvision's, with less around the same call for a tensor."""

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        if not isinstance(image, Tensor):
            return super().forward(image)
        return image if torch.rand(1).item() >= self.p else image.flip(-1)


class PILToTensor(nn.Module):
    """PIL images to tensors; tensors stay as they are."""

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)


class ResizeToCover(nn.Module):
    """Resizes an image to the smallest size, in its own aspect ratio, that covers `height` x `width` pixels."""

    def __init__(self, height: int, width: int, interpolation: InterpolationMode) -> None:
        super().__init__()
        self.height, self.width, self.interpolation = height, width, interpolation

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        height, width = v2.functional.get_size(image)
        scale = max(self.height / height, self.width / width)
        size = [max(self.height, round(height * scale)), max(self.width, round(width * scale))]
        return v2.functional.resize(image, size, interpolation=self.interpolation)
