"""The tasks: classification of images and of pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import CLASSIFICATION, SEGMENTATION, Data, Label
from runner.distributed.collectives import all_reduce_sum, world_size
from runner.training.losses import SMALLEST, cross_entropy, segmentation_loss, total_weight
from runner.training.metrics import (
    at_label_size,
    confusion_matrix,
    count_pixels,
    iou_by_class,
    mean_iou,
    new_confusion,
    pixel_accuracy,
)

ByImage = dict[str, Tensor]
"""The values of the images of a batch, each (B, ...)."""


class Task(Protocol):
    """The training loss and the scores of a task. Scores are computed from additive int64 counts."""

    score: ClassVar[str]  # the metric that chooses best.pt; higher is better
    by_class_key: ClassVar[str]  # what summary.json calls the result of `by_class`

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        """The mean training loss; `options` come from methods (label_smoothing)."""

    def loss_weight(self, part: Tensor, whole: Tensor) -> float | Tensor:
        """The weight of a micro-batch's loss in the batch's, from this rank's targets of both.

        A rank's weights sum to 1 in the mean over the ranks.
        """

    def new_counts(self, device: torch.device) -> Tensor:
        """Counts of 0 for training batches, 1-dimensional."""

    def new_evaluation_counts(self, device: torch.device) -> Tensor:
        """Counts of 0 for `measure`, 1-dimensional."""

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a training batch to `counts`, in place, without a device sync."""

    def measure(
        self, counts: Tensor, logits: Tensor, targets: Tensor | Sequence[Label], *, by_image: bool = False
    ) -> tuple[Tensor, ByImage]:
        """Add an evaluation batch to `counts`, in place; return the sum of its images' losses, and what each image has.

        That is, with `by_image`, its loss, "target", by which images are told apart, and what
        `runner.results.predictions` lists; else it is empty.
        """

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        """The metrics in [0, 1], `score` first."""

    def by_class(self, counts: Sequence[int]) -> dict[str, float]:
        """The score of each class, by name or number, from an evaluation's counts. NaN for a class without one."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and accuracy. Counts: images classified right, all images; in an evaluation also those by class.

    `class_weights` (C,) weigh the classes in the training loss.
    """

    score: ClassVar[str] = "accuracy"
    by_class_key: ClassVar[str] = "accuracy_by_class"
    num_classes: int
    class_names: tuple[str, ...] = ()
    class_weights: Tensor | None = field(default=None, compare=False)

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        return cross_entropy(logits, targets, class_weights=self.class_weights, **options)

    def loss_weight(self, part: Tensor, whole: Tensor) -> float | Tensor:
        """The share of images, or of their weights: micro-batches then do not change the loss of a batch."""
        if self.class_weights is None:
            return len(part) / len(whole)
        total = all_reduce_sum(total_weight(whole, self.class_weights))
        return world_size() * total_weight(part, self.class_weights) / total

    def new_counts(self, device: torch.device) -> Tensor:
        return torch.zeros(2, dtype=torch.int64, device=device)

    def new_evaluation_counts(self, device: torch.device) -> Tensor:
        return torch.zeros(2 + 2 * self.num_classes, dtype=torch.int64, device=device)

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Soft targets (B, classes) count as their most probable class."""
        classes = targets.argmax(1) if targets.is_floating_point() else targets
        counts[0] += (logits.argmax(1) == classes).sum()
        counts[1] += len(classes)

    def measure(
        self, counts: Tensor, logits: Tensor, targets: Tensor, *, by_image: bool = False
    ) -> tuple[Tensor, ByImage]:
        self.count(counts, logits, targets)
        classes = logits.argmax(1)
        right, every = counts[2:].view(2, self.num_classes)
        right.index_add_(0, targets, (classes == targets).long())
        every.index_add_(0, targets, torch.ones_like(targets))
        loss = F.cross_entropy(logits, targets, reduction="sum")
        if not by_image:
            return loss, {}
        places = targets.unsqueeze(1)
        others = logits.scatter(1, places, -math.inf).amax(1)
        images = {
            "target": targets.short(),
            "class": classes.short(),
            "margin": logits.gather(1, places).squeeze(1) - others,
            "loss": F.cross_entropy(logits, targets, reduction="none"),
        }
        return loss, images

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        return {"accuracy": counts[0] / counts[1]}

    def by_class(self, counts: Sequence[int]) -> dict[str, float]:
        """The accuracy of each class, by name or number. NaN for a class without an image."""
        right, every = torch.tensor(counts[2:], dtype=torch.float64).view(2, self.num_classes)
        return _named(self.class_names, (right / every).tolist())


@dataclass(frozen=True)
class Segmentation:
    """Weighted cross-entropy and soft Dice; mean IoU and pixel accuracy, from a confusion matrix.

    Training counts the augmented images, evaluation each label at its own resolution. The loss of an evaluation is
    the cross-entropy over an image's labelled pixels, averaged over images.
    """

    score: ClassVar[str] = "mean_iou"
    by_class_key: ClassVar[str] = "iou_by_class"
    num_classes: int
    class_names: tuple[str, ...] = ()
    cross_entropy_weight: float = 1.0
    dice_weight: float = 0.0
    dice_squared: bool = True
    class_weights: Tensor | None = field(default=None, compare=False)

    def loss(self, logits: Tensor, targets: Tensor, **options: float) -> Tensor:
        return segmentation_loss(
            logits,
            targets,
            cross_entropy_weight=self.cross_entropy_weight,
            dice_weight=self.dice_weight,
            dice_squared=self.dice_squared,
            class_weights=self.class_weights,
            **options,
        )

    def loss_weight(self, part: Tensor, whole: Tensor) -> Tensor:
        """The share of labelled pixels, or of their weights: micro-batches do not change the batch's cross-entropy."""
        labelled = all_reduce_sum(total_weight(whole, self.class_weights))
        smallest = 1 if self.class_weights is None else SMALLEST
        return world_size() * total_weight(part, self.class_weights) / labelled.clamp(min=smallest)

    def new_counts(self, device: torch.device) -> Tensor:
        return new_confusion(self.num_classes, device)

    new_evaluation_counts = new_counts

    def count(self, counts: Tensor, logits: Tensor, targets: Tensor) -> None:
        count_pixels(counts, logits, targets)

    def measure(
        self, counts: Tensor, logits: Tensor, targets: Sequence[Label], *, by_image: bool = False
    ) -> tuple[Tensor, ByImage]:
        losses, of_images = [], []
        for image_logits, (mask, size) in zip(logits, targets, strict=True):
            resized = at_label_size(image_logits, size, mask.shape).unsqueeze(0)
            of_images.append(self.new_counts(counts.device))
            count_pixels(of_images[-1], resized, mask.unsqueeze(0))
            losses.append(cross_entropy(resized, mask.unsqueeze(0)))
        counts += sum(of_images)
        loss = torch.stack(losses).sum()
        if not by_image:
            return loss, {}
        matrices = torch.stack([confusion_matrix(each) for each in of_images]).int()
        images = {
            "target": matrices.sum(2),
            "predicted": matrices.sum(1),
            "both": matrices.diagonal(dim1=1, dim2=2),
            "loss": torch.stack(losses),
        }
        return loss, images

    def scores(self, counts: Sequence[int]) -> dict[str, float]:
        matrix = confusion_matrix(torch.tensor(counts))
        return {"mean_iou": mean_iou(matrix), "pixel_accuracy": pixel_accuracy(matrix)}

    def by_class(self, counts: Sequence[int]) -> dict[str, float]:
        """The IoU of each class, by name or number. NaN for a class that neither occurs nor is predicted."""
        values = iou_by_class(confusion_matrix(torch.tensor(counts)))
        return _named(self.class_names, values)


def _named(class_names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(class_names or map(str, range(len(values))), values, strict=True))


def task_of(data: Data, train: Mapping[str, object]) -> Task:
    """The task of a data set; `train` holds cross_entropy_weight, dice_weight and dice_squared."""
    if data.task == CLASSIFICATION:
        return Classification(data.num_classes, data.class_names)
    assert data.task == SEGMENTATION
    return Segmentation(
        data.num_classes,
        data.class_names,
        cross_entropy_weight=train["cross_entropy_weight"],
        dice_weight=train["dice_weight"],
        dice_squared=train["dice_squared"],
    )
