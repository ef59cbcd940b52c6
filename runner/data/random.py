"""Gaussian images with random labels: the shape of a data set without one, for benchmarks."""

from __future__ import annotations

import torch

from runner.data.splits import Data, Split


def random(*, num_images: int = 512, image_size: int = 32, num_classes: int = 10) -> Data:
    """`num_images` for training, a quarter as many each for validation and test; nothing can be learned from them."""
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        images = torch.randn(size, 3, image_size, image_size, generator=generator)
        return Split(images, torch.randint(num_classes, (size,), generator=generator))

    held_out = max(num_images // 4, 1)
    return Data(
        name="random",
        num_classes=num_classes,
        train=split(num_images),
        validation=split(held_out),
        test=split(held_out),
        mean=torch.zeros(3),
        std=torch.ones(3),
        crop_padding=0,
        flip=False,
        validation_source="train",
    )
