"""Gaussian images with random labels: the shape of a data set without one, for benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from runner.config.text import to_override
from runner.data.dataset import SPLITS, as_size, sides_of
from runner.data.memory import check_memory
from runner.data.splits import Split, TensorData


def random(
    *, num_images: int = 512, image_size: int | Sequence[int] = 32, channels: int = 3, num_classes: int = 10
) -> TensorData:
    """`num_images` for training, and a quarter as many each for validation and test.

    The images are drawn on the device of the batches: the same in each call, but different on CPU and GPU. Raises
    SettingError if they are larger than the machine's memory.
    """
    held_out = max(num_images // 4, 1)
    sizes = (num_images, held_out, held_out)
    shape = (channels, *sides_of(image_size))
    setting = f"dataset.num_images={num_images} with dataset.image_size={to_override(image_size)}"
    needed = sum(sizes) * math.prod(shape) * torch.float32.itemsize
    check_memory(setting, needed, torch.device("cpu"), "Choose fewer or smaller images.")
    splits = [RandomSplit(place, sizes, shape, num_classes) for place in range(len(SPLITS))]
    return TensorData(
        name="random",
        num_classes=num_classes,
        image_size=as_size(image_size),
        **dict(zip(SPLITS, splits, strict=True)),
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        validation_source="train",
    )


@dataclass(frozen=True)
class RandomSplit:
    """A lazy `Split`: number `place` of three splits of these `sizes`."""

    place: int
    sizes: tuple[int, ...]
    shape: tuple[int, int, int]  # of an image
    num_classes: int

    def __len__(self) -> int:
        return self.sizes[self.place]

    def on(self, device: torch.device) -> Split:
        """The split, drawn on this device."""
        return _splits(self.sizes, self.shape, self.num_classes, device)[self.place]

    @property
    def images(self) -> Tensor:
        """Drawn on the CPU."""
        return self.on(torch.device("cpu")).images

    @property
    def targets(self) -> Tensor:
        """Drawn on the CPU."""
        return self.on(torch.device("cpu")).targets


@lru_cache(maxsize=1)
def _splits(sizes: tuple[int, ...], shape: tuple[int, int, int], num_classes: int, device: torch.device) -> list[Split]:
    """All splits, drawn in order from one generator."""
    generator = torch.Generator(device).manual_seed(0)

    def split(size: int) -> Split:
        images = torch.randn(size, *shape, generator=generator, device=device)
        return Split(images, torch.randint(num_classes, (size,), generator=generator, device=device))

    return [split(size) for size in sizes]
