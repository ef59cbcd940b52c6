"""The tasks: classification of images and of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import CLASSIFICATION, IGNORE_INDEX, SEGMENTATION, Data, Label
from runner.distributed.collectives import all_reduce_sum, world_size
from runner.training.losses import cross_entropy, segmentation_loss
from runner.training.metrics import (
    at_label_size,
    confusion_matrix,
    count_pixels,
    iou_by_class,
    mean_iou,
    new_confusion,
    pixel_accuracy,
)


class Task(Protocol):
    """The training loss and the scores of a task. Scores are computed from additive int64 counts."""

    score: ClassVar[str]  # the metric that chooses best.pt; higher is better

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        """The mean training loss; `options` come from methods (label_smoothing)."""

    def loss_weight(self, part: Tensor, whole: Tensor) -> float | Tensor:
        """The weight of a micro-batch's loss in the batch's, from this rank's targets of both.

        A rank's weights sum to 1 in the mean over the ranks.
        """

    def new_counts(self, device: torch.device) -> Tensor:
        """Counts of 0, 1-dimensional."""

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a training batch to `counts`, in place, without a device sync."""

    def measure(self, counts: Tensor, logits: Tensor, targets: Tensor | Sequence[Label]) -> tuple[Tensor, int]:
        """Add an evaluation batch to `counts`, in place; return the sum of its images' losses and their number."""

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        """The metrics in [0, 1], `score` first."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and accuracy. Counts: images classified right, all images."""

    score: ClassVar[str] = "accuracy"

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        return cross_entropy(logits, targets, **options)

    def loss_weight(self, part: Tensor, whole: Tensor) -> float:
        return len(part) / len(whole)

    def new_counts(self, device: torch.device) -> Tensor:
        return torch.zeros(2, dtype=torch.int64, device=device)

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Soft targets (B, classes) count as their most probable class."""
        classes = targets.argmax(1) if targets.is_floating_point() else targets
        counts[0] += (logits.argmax(1) == classes).sum()
        counts[1] += len(classes)

    def measure(self, counts: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        self.count(counts, logits, targets)
        return F.cross_entropy(logits, targets, reduction="sum"), len(targets)

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        return {"accuracy": counts[0] / counts[1]}


@dataclass(frozen=True)
class Segmentation:
    """Weighted cross-entropy and soft Dice; mean IoU and pixel accuracy, from a confusion matrix.

    Training counts the augmented images, evaluation each label at its own resolution. The loss of an evaluation is
    the cross-entropy over an image's labelled pixels, averaged over images.
    """

    score: ClassVar[str] = "mean_iou"
    num_classes: int
    class_names: tuple[str, ...] = ()
    cross_entropy_weight: float = 1.0
    dice_weight: float = 0.0
    dice_squared: bool = True

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        return segmentation_loss(
            logits,
            targets,
            cross_entropy_weight=self.cross_entropy_weight,
            dice_weight=self.dice_weight,
            dice_squared=self.dice_squared,
            **options,
        )

    def loss_weight(self, part: Tensor, whole: Tensor) -> Tensor:
        """The share of labelled pixels: micro-batches then do not change the cross-entropy of a batch."""
        labelled = all_reduce_sum((whole != IGNORE_INDEX).sum())
        return world_size() * (part != IGNORE_INDEX).sum() / labelled.clamp(min=1)

    def new_counts(self, device: torch.device) -> Tensor:
        return new_confusion(self.num_classes, device)

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        count_pixels(counts, logits, targets)

    def measure(self, counts: Tensor, logits: Tensor, targets: Sequence[Label]) -> tuple[Tensor, int]:
        losses = []
        for image_logits, (mask, size) in zip(logits, targets, strict=True):
            resized = at_label_size(image_logits, size, mask.shape).unsqueeze(0)
            count_pixels(counts, resized, mask.unsqueeze(0))
            losses.append(cross_entropy(resized, mask.unsqueeze(0)))
        return torch.stack(losses).sum(), len(losses)

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        matrix = confusion_matrix(torch.tensor(counts))
        return {"mean_iou": mean_iou(matrix), "pixel_accuracy": pixel_accuracy(matrix)}

    def by_class(self, counts: Sequence[int]) -> dict[str, float]:
        """The IoU of each class, by name or number. NaN for a class that neither occurs nor is predicted."""
        values = iou_by_class(confusion_matrix(torch.tensor(counts)))
        return dict(zip(self.class_names or map(str, range(len(values))), values, strict=True))


def task_of(data: Data, train: Mapping[str, object]) -> Task:
    """The task of a data set; `train` holds cross_entropy_weight, dice_weight and dice_squared."""
    if data.task == CLASSIFICATION:
        return Classification()
    assert data.task == SEGMENTATION
    return Segmentation(
        data.num_classes,
        data.class_names,
        cross_entropy_weight=train["cross_entropy_weight"],
        dice_weight=train["dice_weight"],
        dice_squared=train["dice_squared"],
    )
