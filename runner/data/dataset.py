"""The interface of a data set: three splits, their batches, and facts about its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from runner.data.sampling import WHOLE, Shard

T = TypeVar("T")
CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
IGNORE_INDEX = 255  # a mask's value where no class is given, and at its padding
SPLITS = ("train", "validation", "test")
LARGEST_EVALUATION_BATCH = 256
LARGEST_EVALUATION_NUMEL = 2**28  # of an evaluation batch's images or logits: 1 GiB in float32

# (mask of integers (h, w) as it lies in its file, (height, width) of the part of the network's input that shows it)
Label = tuple[Tensor, tuple[int, int]]


class DataFault(RuntimeError):
    """A file of the data is wrong; the message says which, why and what to do. Ends a run as failed."""


class TrainBatches(ABC):
    """Shuffled, augmented training batches. Drops the last, incomplete batch of an epoch.

    `batch_size` is the global one; `epoch` gives this rank's shard of each batch.
    """

    num_classes: int
    batch_size: int

    @abstractmethod
    def __len__(self) -> int:
        """The number of batches per epoch."""

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `start` on, on the device; the same in each call.

        Normalized images (B, C, H, W) float32; class indices (B,), or masks of them (B, H, W), int64.
        """


class EvaluationBatches(ABC):
    """Batches of a split in order; over all ranks each sample once."""

    channels_last: bool

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | Sequence[Label]]]:
        """Normalized images (B, C, H, W) on the device, and class indices (B,), or B labels for segmentation."""


@dataclass
class Findings:
    """Results of the checks of a data set, shown at a run's start and kept in its summary."""

    notes: list[tuple[str, str]] = field(default_factory=list)  # (note or warning, sentence)
    entries: dict[str, object] = field(default_factory=dict)  # for `data` in summary.json

    def add(self, other: Findings) -> None:
        """Add the results of another check."""
        self.notes += other.notes
        self.entries |= other.entries


@dataclass(frozen=True, kw_only=True)
class Data(ABC):
    """A data set. `validation_source` is the split that the validation samples come from, "train" or "test".

    `mean` and `std` (C,) normalize images in [0, 1]; `image_size` is the side of a training image in pixels, or its
    height and width.
    `class_names` may be empty. `unreadable` collects files that cannot be read.
    """

    name: str
    num_classes: int
    image_size: int | tuple[int, int]
    train: Sized
    validation: Sized
    test: Sized
    mean: Tensor
    std: Tensor
    validation_source: str
    task: str = CLASSIFICATION
    class_names: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)  # file -> reason
    findings: Findings = field(default_factory=Findings, compare=False)

    @abstractmethod
    def train_batches(
        self, *, batch_size: int, seed: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> TrainBatches:
        """The `shard` of the training batches; `batch_size` is the global one.

        Raises ValueError if the split has fewer images than a batch.
        """

    @abstractmethod
    def evaluation_batches(
        self, split: str, *, batch_size: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> EvaluationBatches:
        """The `shard` of the batches of a split, one of `SPLITS`, with at most `batch_size` samples each."""

    def unseen_classes(self) -> dict[str, list[str]]:
        """The classes of each split without a readable image so far. Empty for segmentation."""
        return {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of a training image."""
        return (len(self.mean), *sides_of(self.image_size))

    @property
    def evaluation_batch_size(self) -> int:
        """A batch size for evaluation whose images and logits fit in memory."""
        channels, height, width = self.image_shape
        logits = self.num_classes * (height * width if self.task == SEGMENTATION else 1)
        numel = max(logits, channels * height * width)
        return min(LARGEST_EVALUATION_BATCH, max(LARGEST_EVALUATION_NUMEL // numel, 1))

    def example_input(self, number: int = 2) -> Tensor:
        """Zeros in the shape of `number` training images, (number, C, H, W)."""
        return torch.zeros(number, *self.image_shape)


def sides_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an image size, which is one number for a square."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def as_size(image_size: int | Sequence[int]) -> int | tuple[int, int]:
    """An image size as a data set has it: one number, or height and width."""
    return image_size if isinstance(image_size, int) else tuple(image_size)


def size_text(sides: Sequence[int]) -> str:
    """Height and width in a sentence, as 32x32."""
    return "x".join(map(str, sides))


def own_splits(train: T, validation: T, test: T, validation_source: str) -> dict[str, T]:
    """The splits by name, without a validation split that is the test split."""
    splits = {"train": train, "validation": validation, "test": test}
    return {name: split for name, split in splits.items() if name != "validation" or validation_source != "test"}


def check_batch_size(batch_size: int, data: Data) -> None:
    """Raise a ValueError if the training split has fewer images than a batch."""
    if batch_size > len(data.train):
        raise ValueError(
            f"train.global_batch_size={batch_size}: larger than the training split, {len(data.train)} images. "
            f"Choose at most {len(data.train)}."
        )
