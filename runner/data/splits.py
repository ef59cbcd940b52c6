"""Data sets that lie in memory as tensors, and how a share of the training set is set apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from runner.data.batches import TensorEvaluationBatches, TensorTrainBatches
from runner.data.dataset import Data, check_batch_size
from runner.data.duplicates import duplicate_images
from runner.data.shards import WHOLE, Shard

T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 or float in [0, 1], and class indices (N,) or masks of them (N, H, W)."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, indices: Tensor) -> Split:
        """The images of `indices`."""
        return Split(self.images[indices], self.targets[indices])

    def on(self, device: torch.device) -> Split:
        """The split on this device."""
        return Split(self.images.to(device), self.targets.to(device))


@dataclass(frozen=True, kw_only=True)
class TensorData(Data):
    """A data set in memory. Training images are cropped at random out of themselves, padded, and mirrored."""

    train: Split
    validation: Split
    test: Split
    crop_padding: int = 0
    flip: bool = False

    def train_batches(
        self, *, batch_size: int, seed: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> TensorTrainBatches:
        check_batch_size(batch_size, self)
        split = self.train.on(device)
        return TensorTrainBatches(
            self,
            split.images,
            split.targets,
            seed=seed,
            crop_padding=self.crop_padding,
            flip=self.flip,
            batch_size=batch_size,
            device=device,
            channels_last=channels_last,
            shard=shard,
        )

    def evaluation_batches(
        self, split: str, *, batch_size: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> TensorEvaluationBatches:
        chosen: Split = getattr(self, split).on(device)
        return TensorEvaluationBatches(
            self,
            chosen.images,
            chosen.targets,
            batch_size=batch_size,
            device=device,
            channels_last=channels_last,
            shard=shard,
        )


def make_data(
    name: str,
    train: Split,
    test: Split,
    *,
    num_classes: int,
    validation: float | str,
    crop_padding: int = 0,
    flip: bool = False,
    check_duplicates: bool | None = None,
    **about: object,
) -> TensorData:
    """Split the published training set and measure the mean and standard deviation of what is left of it.

    `validation` is the share of the training set that is set apart, stratified by class (masks are not), always the
    same one; or "test": the whole training set is trained on and the test split stands in for the validation split.
    `check_duplicates` is explained by `duplicate_images`; `about` are further fields of `Data`.
    """
    if validation == "test":
        held_out, source = test, "test"
    else:
        classes = train.targets if train.targets.ndim == 1 else torch.zeros(len(train), dtype=torch.int64)
        left, chosen = set_apart(classes, float(validation))
        held_out, train, source = train.part(chosen), train.part(left), "train"
    splits = {"train": train.images, "validation": held_out.images, "test": test.images}
    if source == "test":
        del splits["validation"]
    pixels = train.images.double() / (255 if train.images.dtype == torch.uint8 else 1)
    return TensorData(
        name=name,
        num_classes=num_classes,
        image_size=train.images.shape[-1],
        train=train,
        validation=held_out,
        test=test,
        mean=pixels.mean((0, 2, 3)).float(),
        std=pixels.std((0, 2, 3), correction=0).float(),
        validation_source=source,
        crop_padding=crop_padding,
        flip=flip,
        findings=duplicate_images(splits, check_duplicates),
        **about,
    )


def apart(
    train: Sequence[T], targets: Tensor, test: Sequence[T], validation: float | str
) -> tuple[list[T], Sequence[T], str]:
    """Training samples, validation samples and the source of these; see make_data. `targets` are those of `train`."""
    if validation == "test":
        return list(train), test, "test"
    left, chosen = set_apart(targets, float(validation))
    return [train[index] for index in left.tolist()], [train[index] for index in chosen.tolist()], "train"


def set_apart(targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the samples to train on, and of the `share` to validate on; see stratified_share.

    Raises ValueError if that share is no sample at all, or all of a class.
    """
    chosen = stratified_share(targets, share)
    if not len(chosen):
        raise ValueError(
            f"dataset.validation={share}: that share of the training images of a class is none, in every class. Choose "
            "a larger share, or dataset.validation=test."
        )
    is_left = torch.ones(len(targets), dtype=torch.bool)
    is_left[chosen] = False
    left = is_left.nonzero().squeeze(1)
    if lost := len(targets.unique()) - len(targets[left].unique()):
        of_classes = f" of {lost} class{'es' if lost > 1 else ''}" if len(left) else ""
        raise ValueError(
            f"dataset.validation={share}: that share takes all training images{of_classes}, and leaves none to train "
            "on. Choose a smaller share, or dataset.validation=test."
        )
    return left, chosen


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
