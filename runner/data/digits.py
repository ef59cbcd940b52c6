"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.sampling import stratified_share
from runner.data.splits import Split, TensorData, make_data

TEST_SHARE = 0.2


def digits(
    *,
    image_size: int = 12,
    crop_padding: int = 0,
    flip: bool = False,
    validation: float | str = 0.1,
    check_duplicates: bool | None = None,
) -> TensorData:
    """The digits enlarged to `image_size` pixels (bilinear), as three equal channels, in fixed stratified splits.

    359 test images; of the other 1,438 a share `validation` for choosing the best checkpoint.
    """
    train, test = (
        Split(_enlarged(split.images, image_size).expand(-1, 3, -1, -1).contiguous(), split.targets)
        for split in source_splits()
    )
    return make_data(
        "digits",
        train,
        test,
        num_classes=10,
        validation=validation,
        crop_padding=crop_padding,
        flip=flip,
        check_duplicates=check_duplicates,
    )


def source_splits() -> tuple[Split, Split]:
    """The digits as they come, (N, 1, 8, 8) in [0, 1]: those to train on, and those to test on."""
    from sklearn.datasets import load_digits  # a second of import that other data sets do not need

    source = load_digits()
    every = Split(torch.from_numpy(source.images).float().unsqueeze(1) / 16, torch.from_numpy(source.target).long())
    test_indices = stratified_share(every.targets, TEST_SHARE)
    rest = torch.ones(len(every), dtype=torch.bool)
    rest[test_indices] = False
    return every.part(rest.nonzero().squeeze(1)), every.part(test_indices)


def _enlarged(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
