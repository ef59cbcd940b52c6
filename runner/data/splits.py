"""Data sets in memory, as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.data.batches import TensorEvaluationBatches, TensorTrainBatches
from runner.data.dataset import Data, check_batch_size, own_splits
from runner.data.duplicates import duplicate_images
from runner.data.sampling import set_apart, stratified_share


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 or float in [0, 1], and class indices (N,) or masks (N, H, W)."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, indices: Tensor) -> Split:
        """The images of `indices`."""
        return Split(self.images[indices], self.targets[indices])

    def with_channels(self, channels: int) -> Split:
        """Grey images as so many equal channels."""
        return Split(self.images.expand(-1, channels, -1, -1).contiguous(), self.targets)

    def on(self, device: torch.device) -> Split:
        """The split on this device."""
        return Split(self.images.to(device), self.targets.to(device))


@dataclass(frozen=True, kw_only=True)
class TensorData(Data):
    """A data set in memory. Training images are padded, cropped at random, mirrored, and erased in a rectangle."""

    train: Split
    validation: Split
    test: Split
    crop_padding: int = 0
    flip: bool = False
    random_erasing: float = 0.0

    def train_batches(self, *, batch_size: int, seed: int, **placing: Any) -> TensorTrainBatches:
        check_batch_size(batch_size, self)
        augmentation = {key: getattr(self, key) for key in ("crop_padding", "flip", "random_erasing")}
        return TensorTrainBatches(self, "train", seed=seed, batch_size=batch_size, **augmentation, **placing)

    def evaluation_batches(self, split: str, *, batch_size: int, **placing: Any) -> TensorEvaluationBatches:
        return TensorEvaluationBatches(self, split, batch_size=batch_size, **placing)


def make_data(
    name: str,
    train: Split,
    test: Split,
    *,
    num_classes: int,
    validation: float | str | Split = 0.1,
    train_images: int | None = None,
    label_noise: float = 0.0,
    check_duplicates: bool | None = None,
    **about: object,
) -> TensorData:
    """Make a data set of the published splits, normalized by the mean and standard deviation of its training images.

    `validation` is the share of the training set that becomes the validation split, always the same samples,
    stratified by class (masks are not); or that split itself; or "test": the test split stands in for it. Of what is
    left, `train_images` are trained on, always the same, stratified by class; None: all. `label_noise` is the share of
    these that get another class, drawn uniformly, always the same. See `duplicate_images` for `check_duplicates`;
    `about` are further fields of `TensorData`.
    """
    if isinstance(validation, Split):
        held_out, source = validation, "train"
    elif validation == "test":
        held_out, source = test, "test"
    else:
        classes = train.targets if train.targets.ndim == 1 else torch.zeros(len(train), dtype=torch.int64)
        left, chosen = set_apart(classes, float(validation))
        held_out, train, source = train.part(chosen), train.part(left), "train"
    if train_images is not None:
        train = _few(train, train_images)
    if label_noise > 0:
        train = Split(train.images, _noisy(train.targets, label_noise, num_classes))
    splits = own_splits(train.images, held_out.images, test.images, source)
    height, width = train.images.shape[2:]
    mean, std = channel_statistics(train.images)
    return TensorData(
        name=name,
        num_classes=num_classes,
        image_size=height if height == width else (height, width),
        train=train,
        validation=held_out,
        test=test,
        mean=mean,
        std=std,
        validation_source=source,
        findings=duplicate_images(splits, check_duplicates),
        **about,
    )


def _few(train: Split, number: int) -> Split:
    """`number` of the training images: its share of each class, rounded. Raises ValueError for a class of none."""
    chosen = stratified_share(train.targets, min(1.0, number / len(train)))
    if number > len(train) or len(train.targets[chosen].unique()) < len(train.targets.unique()):
        why = "more than the" if number > len(train) else "too few for an image of each class of the"
        raise ValueError(f"dataset.train_images={number}: {why} {len(train):,} training images; choose another number.")
    return train.part(chosen)


def _noisy(targets: Tensor, share: float, num_classes: int) -> Tensor:
    """The classes (N,), of which a `share` is replaced by others."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(targets), generator=generator)[: round(share * len(targets))]
    added = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    noisy = targets.clone()
    noisy[chosen] = (targets[chosen] + added) % num_classes
    return noisy


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the channels of images (N, C, H, W), scaled to [0, 1] if they are bytes."""
    if images.dtype != torch.uint8:
        pixels = images.double()
        return pixels.mean((0, 2, 3)).float(), pixels.std((0, 2, 3), correction=0).float()
    # from counts of the 256 values: in float64 the pixels would take eight times the memory
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    shares, values = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * values).sum(1)
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.float(), std.float()
