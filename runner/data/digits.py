"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
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
    rows = torch.from_numpy(_rows())
    every = Split(rows[:, :-1].float().view(-1, 1, 8, 8) / 16, rows[:, -1].long())
    test_indices = stratified_share(every.targets, TEST_SHARE)
    rest = torch.ones(len(every), dtype=torch.bool)
    rest[test_indices] = False
    return every.part(rest.nonzero().squeeze(1)), every.part(test_indices)


def _rows() -> np.ndarray:
    """The pixels and the class of each digit, (1797, 65), from the package's file: its import takes seconds."""
    package = find_spec("sklearn")
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz") if package else None
    if file is not None and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    source = load_digits()
    return np.column_stack([source.data, source.target])


def _enlarged(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
