"""What a data set is to the runner: three splits of images in memory, and what training does to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 or float in [0, 1], and class indices (N,)."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, indices: Tensor) -> Split:
        """The images of `indices`."""
        return Split(self.images[indices], self.targets[indices])


@dataclass(frozen=True)
class Data:
    """A data set; `validation_source` says where best.pt is chosen: a share of the training set, or the test split."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    mean: Tensor  # (C,), of the training images in [0, 1]
    std: Tensor  # (C,)
    crop_padding: int
    flip: bool
    validation_source: str

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.train.images.shape[-1]


def make_data(
    name: str,
    train: Split,
    test: Split,
    *,
    num_classes: int,
    validation: float | str,
    crop_padding: int = 0,
    flip: bool = False,
) -> Data:
    """Split the published training set and measure the mean and standard deviation of what is left of it.

    `validation` is the share of the training set that is set apart, stratified by class and always the same one,
    or "test": the whole training set is trained on and the test split stands in for the validation split.
    """
    if validation == "test":
        held_out, source = test, "test"
    else:
        held_out_indices = stratified_share(train.targets, float(validation))
        left = torch.ones(len(train), dtype=torch.bool)
        left[held_out_indices] = False
        held_out, train, source = train.part(held_out_indices), train.part(left.nonzero().squeeze(1)), "train"
    pixels = train.images.double() / (255 if train.images.dtype == torch.uint8 else 1)
    mean, std = pixels.mean((0, 2, 3)).float(), pixels.std((0, 2, 3), correction=0).float()
    return Data(name, num_classes, train, held_out, test, mean, std, crop_padding, flip, source)


def stratified_share(targets: Tensor, share: float) -> Tensor:
    """Indices of a `share` of the samples, in each class as near to its share as whole samples allow.

    The same on every machine and for every seed of a run: shuffled by a generator of its own.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(targets), generator=generator)
    # a stable sort of the shuffled samples by class; then every class gives its first ones
    by_class = order[targets[order].argsort(stable=True)]
    counts = targets.bincount()
    starts = counts.cumsum(0) - counts
    chosen = [
        by_class[start : start + round(share * count)]
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
    ]
    return torch.cat(chosen).sort().values
