"""The weights of the classes in the training loss, as `train.class_weights` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runner.config.text import SettingError, to_override
from runner.data.dataset import CLASSIFICATION, Data
from runner.data.file_data import FileData
from runner.training.tasks import Task

BALANCED = "balanced"


def check_class_weights(class_weights: Sequence[float] | str | None, data: Data) -> None:
    """Raise a SettingError for a list that has not one weight for each class."""
    if class_weights not in (None, BALANCED) and len(class_weights) != data.num_classes:
        raise SettingError(
            f"train.class_weights={to_override(class_weights)}: {len(class_weights)} weights, and {data.name} has "
            f"{data.num_classes} classes. Give one for each, or balanced."
        )


def with_class_weights(
    task: Task, class_weights: Sequence[float] | str | None, data: Data, device: torch.device
) -> Task:
    """The task with the weights in its training loss.

    "balanced": N / (K n_c) for n_c training images, or labelled pixels, of class c, N of all and K classes that occur
    (scikit-learn's rule); 1 for a class that does not occur.
    """
    if class_weights is None:
        return task
    if class_weights == BALANCED:
        counts = class_counts(data, device).double()
        occurs = counts > 0
        weights = torch.where(occurs, counts.sum() / (occurs.sum() * counts.clamp(min=1)), 1.0)
    else:
        weights = torch.tensor(class_weights, dtype=torch.float64)
    return replace(task, class_weights=weights.to(device, torch.float32))


def class_counts(data: Data, device: torch.device) -> Tensor:
    """The number of training images of each class, or of labelled pixels of its training masks, (C,) int64.

    Masks in files are read for it, once, with their images.
    """
    counts = torch.zeros(data.num_classes, dtype=torch.int64)
    if isinstance(data, FileData) and data.task == CLASSIFICATION:
        parts = [torch.tensor([label for _, label in data.train])]
    elif (targets := getattr(data.train, "targets", None)) is not None:
        parts = [targets.cpu()]
    else:
        batches = data.evaluation_batches("train", batch_size=data.evaluation_batch_size, device=device)
        parts = (_labels(targets) for _, targets in batches)
    for part in parts:
        flat = part.flatten()
        counts += flat[flat < data.num_classes].bincount(minlength=data.num_classes)  # others are ignored labels
    return counts


def _labels(targets: Tensor | Sequence[tuple]) -> Tensor:
    if isinstance(targets, Tensor):
        return targets.cpu()
    return torch.cat([mask.flatten() for mask, _ in targets]).cpu().long()
