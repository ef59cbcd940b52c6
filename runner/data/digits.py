"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.memory import check_memory
from runner.data.sampling import stratified_share
from runner.data.splits import Split, TensorData, make_data

TEST_SHARE = 0.2
NUM_IMAGES = 1797
BYTES_OF_A_CHANNEL = 8  # of a pixel, at the least, while they are enlarged


def digits(*, image_size: int = 12, channels: int = 3, **settings: Any) -> TensorData:
    """The digits, enlarged to `image_size` pixels (bilinear), as equal `channels`, in fixed stratified splits.

    359 test images and 1,438 for training and validation. See `make_data` for `settings`. Raises SettingError if they
    are larger than the machine's memory.
    """
    needed = NUM_IMAGES * channels * BYTES_OF_A_CHANNEL * image_size**2
    check_memory(f"dataset.image_size={image_size}", needed, torch.device("cpu"), "Choose fewer or smaller images.")
    splits = (
        Split(_enlarged(split.images, image_size), split.targets).with_channels(channels) for split in source_splits()
    )
    return make_data("digits", *splits, num_classes=10, **settings)


def source_splits() -> tuple[Split, Split]:
    """The original digits, (N, 1, 8, 8) in [0, 1], for training and for the test."""
    from sklearn.datasets import load_digits  # the import takes a second

    source = load_digits()
    every = Split(torch.from_numpy(source.images).float().unsqueeze(1) / 16, torch.from_numpy(source.target).long())
    test_indices = stratified_share(every.targets, TEST_SHARE)
    rest = torch.ones(len(every), dtype=torch.bool)
    rest[test_indices] = False
    return every.part(rest.nonzero().squeeze(1)), every.part(test_indices)


def _enlarged(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
