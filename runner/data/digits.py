"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from runner.data.splits import Data, Split, make_data, stratified_share

TEST_SHARE = 0.2


def digits(*, image_size: int = 12, crop_padding: int = 0, flip: bool = False, validation: float | str = 0.1) -> Data:
    """The digits enlarged to `image_size` pixels (bilinear), as three equal channels, in fixed stratified splits.

    360 test images; of the other 1,437 a share `validation` for choosing the best checkpoint.
    """
    from sklearn.datasets import load_digits  # a second of import that other data sets do not need

    source = load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", align_corners=False)
    every = Split(images.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(source.target).long())
    test_indices = stratified_share(every.targets, TEST_SHARE)
    rest = torch.ones(len(every), dtype=torch.bool)
    rest[test_indices] = False
    return make_data(
        "digits",
        every.part(rest.nonzero().squeeze(1)),
        every.part(test_indices),
        num_classes=10,
        validation=validation,
        crop_padding=crop_padding,
        flip=flip,
    )
