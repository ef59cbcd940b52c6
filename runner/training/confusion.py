"""Confusion matrices of segmentation, counted on the device without making the host wait for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import IGNORE_INDEX


def new_confusion(num_classes: int, device: torch.device) -> Tensor:
    """Counts of pixels, all 0: one of ignored pixels, then one for each label and prediction, (1 + C * C,) int64."""
    return torch.zeros(1 + num_classes**2, dtype=torch.int64, device=device)


def add(counts: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Count the pixels of logits (B, C, H, W) and masks (B, H, W) into `counts`, in place.

    A label is a class index or 255, which is ignored.
    """
    num_classes = logits.shape[1]
    # the ignored pixels come first, so that a label that is no class is an index out of range and not one of them
    place = 1 + num_classes * targets + logits.argmax(1)
    place = place.masked_fill(targets == IGNORE_INDEX, 0).flatten()
    counts.scatter_add_(0, place, torch.ones_like(place))


def matrix_of(counts: Tensor) -> Tensor:
    """The confusion matrix (C, C): labels in rows, predictions in columns."""
    return counts[1:].view(-1, math.isqrt(len(counts)))


def iou_by_class(matrix: Tensor) -> list[float]:
    """Of each class the pixels that are labelled and predicted as it, as a share of those that are either one.

    NaN for a class that is neither labelled nor predicted anywhere.
    """
    matrix = matrix.double()
    both = matrix.diagonal()
    return (both / (matrix.sum(0) + matrix.sum(1) - both)).tolist()


def mean_iou(matrix: Tensor) -> float:
    """The mean of `iou_by_class` over the classes that are labelled or predicted somewhere; NaN if none is."""
    ious = [iou for iou in iou_by_class(matrix) if not math.isnan(iou)]
    return sum(ious) / len(ious) if ious else math.nan


def pixel_accuracy(matrix: Tensor) -> float:
    """The share of the labelled pixels that are predicted right; NaN if none is labelled."""
    matrix = matrix.double()
    return (matrix.trace() / matrix.sum()).item()


def at_label_size(logits: Tensor, size: tuple[int, int], label_shape: tuple[int, int]) -> Tensor:
    """Logits (C, H, W) of one image at its label's resolution, (C, *label_shape), float32.

    `size` is the height and width of the part that shows the image; the rest, at the right and the bottom, is padding
    and is cut off before the bilinear interpolation (align_corners=False).
    """
    shown = logits[:, : size[0], : size[1]].float()
    return F.interpolate(shown.unsqueeze(0), label_shape, mode="bilinear", align_corners=False).squeeze(0)
