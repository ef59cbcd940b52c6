"""Metrics as sums and counts on the device, read only now and then: of training, and confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import IGNORE_INDEX
from runner.distributed.collectives import all_reduce_sum, rank, world_size

if TYPE_CHECKING:
    from runner.training.tasks import Task


@dataclass(frozen=True)
class Snapshot:
    """The sums of a `MetricAccumulator` as numbers; `methods` maps a metric to (its sum, number of steps)."""

    images: int = 0
    steps: int = 0
    loss: float = 0.0
    counts: tuple[int, ...] = ()
    methods: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def since(self, before: Snapshot) -> Snapshot:
        """The sums of what was added after `before`."""
        counts = before.counts or (0,) * len(self.counts)
        methods = {
            name: (total - before.methods.get(name, (0, 0))[0], steps - before.methods.get(name, (0, 0))[1])
            for name, (total, steps) in self.methods.items()
        }
        return Snapshot(
            self.images - before.images,
            self.steps - before.steps,
            self.loss - before.loss,
            tuple(now - then for now, then in zip(self.counts, counts, strict=True)),
            methods,
        )


class MetricAccumulator:
    """Sums of loss, counts and metrics over an epoch. Adding to them needs no device sync.

    Each rank adds its own batches; `read` and `state_dict` reduce over the ranks.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Reset for a new epoch."""
        self.images = 0
        self.steps = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.counts = self.task.new_counts(self.device)
        self.methods: dict[str, Tensor] = {}  # metric -> (its sum, number of steps)

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a micro-batch; `loss` is its mean."""
        self.images += len(targets)
        self.loss += loss.double() * len(targets)
        self.task.count(self.counts, logits, targets)

    def add_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Add an optimizer step and its metrics, except those that are not finite, as if a loss scale overflows."""
        self.steps += 1
        for name, value in metrics.items():
            value, finite = value.double(), value.isfinite().double()
            added = torch.stack([torch.where(finite > 0, value, 0.0), finite])
            self.methods[name] = self.methods.get(name, 0) + added

    def read(self) -> Snapshot:
        """The sums over all ranks, with one device sync. Call it on all ranks."""
        parts = [self.loss.view(1), self.counts.double(), *self.methods.values()]
        loss, *values = all_reduce_sum(torch.cat(parts)).tolist()  # counts below 2^53 are exact
        counts, values = values[: len(self.counts)], values[len(self.counts) :]
        pairs = zip(values[::2], values[1::2], strict=True)
        methods = dict(zip(self.methods, pairs, strict=True))
        return Snapshot(self.images * world_size(), self.steps, loss, tuple(map(int, counts)), methods)

    def means(self, totals: Snapshot) -> dict[str, float]:
        """Loss per image, scores, and metrics per step, NaN for one that was never finite. Empty without images."""
        if totals.images == 0:
            return {}
        return {
            "loss": totals.loss / totals.images,
            **self.task.scores(totals.counts),
            **{name: total / steps if steps else math.nan for name, (total, steps) in totals.methods.items()},
        }

    def state_dict(self) -> dict:
        """The sums over all ranks, for a checkpoint within an epoch. Call it on all ranks."""
        return {
            "images": self.images * world_size(),
            "steps": self.steps,
            "loss": all_reduce_sum(self.loss),
            "counts": all_reduce_sum(self.counts),
            "methods": {name: all_reduce_sum(value) for name, value in self.methods.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`. Rank 0 takes it all, so the number of ranks may differ."""
        self.images, self.steps = state["images"] // world_size(), state["steps"]
        own = 1 if rank() == 0 else 0
        self.loss, self.counts = own * state["loss"].to(self.device), own * state["counts"].to(self.device)
        self.methods = {name: own * value.to(self.device) for name, value in state["methods"].items()}


def new_confusion(num_classes: int, device: torch.device) -> Tensor:
    """Pixel counts of 0: of ignored pixels, then of each pair of label and prediction, (1 + C * C,) int64."""
    return torch.zeros(1 + num_classes**2, dtype=torch.int64, device=device)


def count_pixels(counts: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Add the pixels of logits (B, C, H, W) and masks (B, H, W) to `counts`, in place, without a device sync.

    Label 255 is ignored.
    """
    num_classes = logits.shape[1]
    # ignored pixels come first: a label that is no class is then out of range, not counted as ignored
    place = 1 + num_classes * targets + logits.max(1).indices  # on a CPU argmax takes several times as long
    place = place.masked_fill(targets == IGNORE_INDEX, 0).flatten()
    counts.scatter_add_(0, place, torch.ones_like(place))


def confusion_matrix(counts: Tensor) -> Tensor:
    """The confusion matrix (C, C): labels in rows, predictions in columns."""
    return counts[1:].view(-1, math.isqrt(len(counts)))


def iou_by_class(matrix: Tensor) -> list[float]:
    """Intersection over union of each class. NaN for a class that is neither labelled nor predicted."""
    matrix = matrix.double()
    both = matrix.diagonal()
    return (both / (matrix.sum(0) + matrix.sum(1) - both)).tolist()


def mean_iou(matrix: Tensor) -> float:
    """The mean of `iou_by_class` over the classes that are labelled or predicted. NaN if none is."""
    ious = [iou for iou in iou_by_class(matrix) if not math.isnan(iou)]
    return sum(ious) / len(ious) if ious else math.nan


def pixel_accuracy(matrix: Tensor) -> float:
    """The share of labelled pixels that are predicted right. NaN if none is labelled."""
    matrix = matrix.double()
    return (matrix.trace() / matrix.sum()).item()


def at_label_size(logits: Tensor, size: tuple[int, int], label_shape: tuple[int, int]) -> Tensor:
    """Resize one image's logits (C, H, W) to its label's resolution, (C, *label_shape) float32, bilinearly.

    `size` is the height and width without padding, which is cut off at the right and the bottom before.
    """
    shown = logits[:, : size[0], : size[1]].float()
    if shown.shape[1:] == label_shape:
        return shown
    return F.interpolate(shown.unsqueeze(0), label_shape, mode="bilinear", align_corners=False).squeeze(0)
