"""What a data set is to the runner: three splits, what an image looks like, and where batches come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runner.data.shards import WHOLE, Shard

CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
IGNORE_INDEX = 255  # a mask's value where no class is given, and at its padding
SPLITS = ("train", "validation", "test")
LARGEST_EVALUATION_BATCH = 256
LARGEST_LOGITS = 2**28  # numbers that a batch's images or logits may have in an evaluation: 1 GiB

# (mask of integers (h, w) as it lies in its file, (height, width) of the part of the network's input that shows it)
Label = tuple[Tensor, tuple[int, int]]


class DataFault(RuntimeError):
    """Files that are there and wrong: the message says which, why and what to do. Ends a run as failed."""


class TrainBatches(ABC):
    """Shuffled, augmented batches of one size; the samples that fill no batch are left out of an epoch.

    `batch_size` is that of all ranks together; what `epoch` gives is one rank's share of it.
    """

    num_classes: int
    batch_size: int

    @abstractmethod
    def __len__(self) -> int:
        """Batches an epoch."""

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `start` on, on the device: the same ones whenever it is called.

        Normalized images (B, C, H, W) float32; class indices (B,), or masks of them (B, H, W), int64.
        """


class EvaluationBatches(ABC):
    """Every sample of a split once, in order; over all ranks together."""

    channels_last: bool

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | Sequence[Label]]]:
        """Normalized images (B, C, H, W) on the device, and class indices (B,), or B labels for segmentation."""


@dataclass
class Findings:
    """What the check of a data set before a run came upon: it is said at the run's start, and kept in its summary."""

    notes: list[tuple[str, str]] = field(default_factory=list)  # (note or warning, sentence)
    entries: dict[str, object] = field(default_factory=dict)  # of summary.json's `data`

    def add(self, other: Findings) -> None:
        """Add what another check came upon."""
        self.notes += other.notes
        self.entries |= other.entries


@dataclass(frozen=True, kw_only=True)
class Data(ABC):
    """A data set. `validation_source` says where best.pt is chosen: a share of the training set, or the test split.

    `mean` and `std` (C,) are those by which images in [0, 1] are normalized; `image_size` is the side of a training
    image in pixels. `class_names` may be empty. `unreadable` fills with the files that could not be read.
    """

    name: str
    num_classes: int
    image_size: int
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
        """Batches of the training split, of each the samples of `shard`; `batch_size` is that of all ranks together.

        Raises ValueError if the split has fewer images than a batch.
        """

    @abstractmethod
    def evaluation_batches(
        self, split: str, *, batch_size: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> EvaluationBatches:
        """The batches of `shard` of a split, one of `SPLITS`, at most `batch_size` samples each."""

    def unseen_classes(self) -> dict[str, list[str]]:
        """Of each split the classes without an image that could be read so far, where images have one class."""
        return {}

    @property
    def evaluation_batch_size(self) -> int:
        """A batch size for evaluation whose images and logits do not fill the memory."""
        logits = self.num_classes * (self.image_size**2 if self.task == SEGMENTATION else 1)
        numbers = max(logits, len(self.mean) * self.image_size**2)
        return min(LARGEST_EVALUATION_BATCH, max(LARGEST_LOGITS // numbers, 1))

    def example_input(self, number: int = 2) -> Tensor:
        """Zeros of the shape of a training batch, (number, C, H, W)."""
        return torch.zeros(number, len(self.mean), self.image_size, self.image_size)


def check_batch_size(batch_size: int, data: Data) -> None:
    """Raise a ValueError if the training split has fewer images than a batch."""
    if batch_size > len(data.train):
        raise ValueError(
            f"train.global_batch_size={batch_size}: larger than the training split, {len(data.train)} images. "
            f"Choose at most {len(data.train)}."
        )
