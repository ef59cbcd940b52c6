"""What is trained and measured: the class of an image, or of each of its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import CLASSIFICATION, IGNORE_INDEX, SEGMENTATION, Data, Label
from runner.distributed.collectives import all_reduce_sum, world_size
from runner.training.confusion import (
    add,
    at_label_size,
    iou_by_class,
    matrix_of,
    mean_iou,
    new_confusion,
    pixel_accuracy,
)
from runner.training.losses import cross_entropy, segmentation_loss


class Task(Protocol):
    """The loss of training, and what is counted to judge a model. Counts are int64 tensors that add up."""

    score: ClassVar[str]  # the metric by which best.pt is chosen; higher is better

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        """The training loss, a mean; `options` are those of the methods (label_smoothing)."""

    def share(self, part: Tensor, whole: Tensor) -> float | Tensor:
        """The weight of a micro-batch's loss in that of its batch, from this rank's targets of both.

        The mean over the ranks of what they add up to is 1.
        """

    def new_counts(self, device: torch.device) -> Tensor:
        """Counts of nothing yet, 1-dimensional."""

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a training batch; the host does not wait for the device."""

    def measure(self, counts: Tensor, logits: Tensor, targets: Tensor | Sequence[Label]) -> tuple[Tensor, int]:
        """Add a batch of an evaluation; returns its loss as a sum over images, and the number of images."""

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        """The metrics, `score` the first, shares of 1."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy; accuracy. Counts: the images whose most probable class is right, and all."""

    score: ClassVar[str] = "accuracy"

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        return cross_entropy(logits, targets, **options)

    def share(self, part: Tensor, whole: Tensor) -> float:
        return len(part) / len(whole)

    def new_counts(self, device: torch.device) -> Tensor:
        return torch.zeros(2, dtype=torch.int64, device=device)

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Of soft targets (B, classes) the most probable class is taken."""
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
    """A weighted sum of cross-entropy and soft Dice; mean IoU and pixel accuracy, from a confusion matrix.

    In training they are counted on the augmented images; in an evaluation at each label's own resolution, where the
    loss is the cross-entropy over an image's labelled pixels, averaged over the images.
    """

    score: ClassVar[str] = "mean_iou"
    num_classes: int
    class_names: tuple[str, ...] = ()
    cross_entropy_weight: float = 1.0
    dice_weight: float = 0.0

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        weights = {"cross_entropy_weight": self.cross_entropy_weight, "dice_weight": self.dice_weight}
        return segmentation_loss(logits, targets, **weights, **options)

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """By labelled pixels, so that the cross-entropy of a batch is the same in one part and in several."""
        labelled = all_reduce_sum((whole != IGNORE_INDEX).sum())
        return world_size() * (part != IGNORE_INDEX).sum() / labelled.clamp(min=1)

    def new_counts(self, device: torch.device) -> Tensor:
        return new_confusion(self.num_classes, device)

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        add(counts, logits, targets)

    def measure(self, counts: Tensor, logits: Tensor, targets: Sequence[Label]) -> tuple[Tensor, int]:
        losses = []
        for image_logits, (mask, size) in zip(logits, targets, strict=True):
            resized = at_label_size(image_logits, size, mask.shape).unsqueeze(0)
            add(counts, resized, mask.unsqueeze(0))
            losses.append(cross_entropy(resized, mask.unsqueeze(0)))
        return torch.stack(losses).sum(), len(losses)

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        matrix = matrix_of(torch.tensor(counts))
        return {"mean_iou": mean_iou(matrix), "pixel_accuracy": pixel_accuracy(matrix)}

    def by_class(self, counts: Sequence[int]) -> dict[str, float]:
        """The IoU of each class by its name, or its number; NaN where it neither occurs nor is predicted."""
        values = iou_by_class(matrix_of(torch.tensor(counts)))
        return dict(zip(self.class_names or map(str, range(len(values))), values, strict=True))


def task_of(data: Data, train: Mapping[str, object]) -> Task:
    """The task of a data set; `train` are the settings train.cross_entropy_weight and train.dice_weight."""
    if data.task == CLASSIFICATION:
        return Classification()
    assert data.task == SEGMENTATION
    return Segmentation(
        data.num_classes,
        data.class_names,
        cross_entropy_weight=train["cross_entropy_weight"],
        dice_weight=train["dice_weight"],
    )
