"""Stems: the layers of a ResNet or an NF-ResNet before the first stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.limits import LIMITS, check


@dataclass(frozen=True)
class Stem:
    """A square convolution to 64 channels, followed by a 3x3 max-pool of stride 2 or by nothing."""

    kernel_size: int
    stride: int
    pool: bool


STEMS = {
    "imagenet": Stem(kernel_size=7, stride=2, pool=True),  # reduces by 4
    "strided": Stem(kernel_size=3, stride=2, pool=False),  # reduces by 2
    "small": Stem(kernel_size=3, stride=1, pool=False),  # keeps the size, as the CIFAR ResNets do
    "wide": Stem(kernel_size=7, stride=1, pool=False),  # keeps the size too
}


def stem_for(image_size: int) -> str:
    """The stem that suits square images of `image_size` pixels.

    From 128 px "imagenet", from 48 px "strided", from 24 px "small": the last stage, after three more reductions by 2,
    still has at least 3x3 positions. Below that "wide": the shortcuts of an NF-ResNet keep every eighth position only,
    and while its skip gains are near 0 the classifier sees just the windows around those.
    """
    check("dataset", LIMITS["dataset"], image_size=image_size)
    if image_size >= 128:
        return "imagenet"
    if image_size >= 48:
        return "strided"
    return "small" if image_size >= 24 else "wide"


def stem_named(name: str) -> Stem:
    """The stem of that name; ValueError if there is none, and for "auto", which needs an image size."""
    check("model", stem=name)
    if name == "auto":
        raise ValueError(f"model.stem=auto: choose one of {', '.join(STEMS)}, or use stem_for(image_size).")
    return STEMS[name]


class MaxPool2dSame(nn.MaxPool2d):
    """Max-pooling with TensorFlow's SAME padding: ceil(n / stride) outputs from n inputs, padded with -inf.

    The padding's total is (ceil(n / stride) - 1) * stride + kernel_size - n, and its larger half comes last.
    Takes an integer kernel size and an integer stride from 2 up to the kernel size.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        assert 2 <= stride <= kernel_size
        super().__init__(kernel_size, stride, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        # Where the last half is longer by one position, ceil_mode lets the last window reach over the edge: no copy.
        before = [self._total_padding(size) // 2 for size in x.shape[-2:]]
        return F.max_pool2d(x, self.kernel_size, self.stride, before, ceil_mode=True)

    def _total_padding(self, size: int) -> int:
        outputs = (size + self.stride - 1) // self.stride
        return (outputs - 1) * self.stride + self.kernel_size - size
