"""Evaluation: of a model on a split, and on the validation split while training goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from runner.data.dataset import DataFault, EvaluationBatches, TrainBatches
from runner.distributed.collectives import all_gather_object, all_reduce_buffers, all_reduce_sum, any_rank, world_size
from runner.distributed.signals import GracefulStop, StopRequested
from runner.layers.standardized_conv import cached_standardized_weights
from runner.tracking.tracker import Tracker
from runner.training.precision import Precision
from runner.training.state import State
from runner.training.tasks import ByImage, Task


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by name, the task's score first; `counts` are what the scores are computed from.

    `images` has the values of each image, in the order of the split, if they were to be kept.
    """

    metrics: dict[str, float]
    counts: list[int]
    num_images: int
    images: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple], precision: Precision, task: Task, *, keep_images: bool = False
) -> Evaluation:
    """Compute the task's scores and its loss in nats, without training-time changes such as label smoothing.

    Sums over all ranks. The host waits for the device once, after the last batch. Restores the model's mode.
    """
    was_training = model.training
    model.eval()
    counts = task.new_evaluation_counts(precision.device)
    sums = torch.zeros(2, dtype=torch.float64, device=precision.device)
    kept: list[ByImage] = []
    try:
        with cached_standardized_weights(model):
            for images, targets in batches:
                with precision.autocast():
                    logits = model(images)
                loss, of_images = task.measure(counts, logits.float(), targets, by_image=keep_images)
                sums[0] += loss
                sums[1] += len(targets)
                kept.append(of_images)
    finally:
        model.train(was_training)
    loss, number = all_reduce_sum(sums).tolist()
    totals = all_reduce_sum(counts).tolist()
    if number == 0:
        raise DataFault("An evaluation had no image: nothing is measured.")
    scores = task.scores(totals)
    if math.isnan(scores[task.score]):
        raise DataFault(f"None of the {int(number)} masks of an evaluation has a labelled pixel: nothing is measured.")
    return Evaluation({**scores, "loss": loss / number}, totals, int(number), _in_order(kept) if keep_images else {})


def _in_order(batches: Sequence[ByImage]) -> dict[str, np.ndarray]:
    """The values of all images; of several ranks each has every so many-th batch."""
    own = [{name: value.cpu().numpy() for name, value in batch.items()} for batch in batches]
    turns = zip_longest(*all_gather_object(own))
    every = [batch for turn in turns for batch in turn if batch is not None]
    return {name: np.concatenate([batch[name] for batch in every]) for name in every[0]}


def shown(
    batches: Iterable[tuple], what: str, total: int, tracker: Tracker, *, after_seconds: float = 0.0
) -> Iterator[tuple]:
    """The batches of an evaluation of `total` images, shown as they pass, once it has taken `after_seconds`."""
    images, start = 0, time.perf_counter()
    for batch in batches:
        if time.perf_counter() - start >= after_seconds:
            tracker.evaluation(what, min(images, total), total)
        yield batch
        images += world_size() * len(batch[1])
    if time.perf_counter() - start >= after_seconds:
        tracker.evaluation(what, total, total)


@dataclass(frozen=True)
class Validation:
    """Evaluates the model, or the average of its weights, on the validation split during training.

    Raises StopRequested, on all ranks together, if a rank gets a signal; training can then resume before it.
    """

    state: State
    train_batches: TrainBatches
    batches: EvaluationBatches
    accumulation_steps: int
    stop: GracefulStop
    shown: Callable[[Iterable[tuple]], Iterable[tuple]]

    def __call__(self, epoch: int) -> dict[str, float]:
        """The loss and the scores. A method may look at the training images of `epoch` before."""
        state, evaluated = self.state, self.state.evaluated_model
        self.check()
        with state.precision.autocast():
            for method in state.methods.values():
                method.before_evaluation(evaluated, lambda: self._train_images(epoch))
        all_reduce_buffers(state.model)
        if evaluated is not state.model:
            all_reduce_buffers(evaluated)
        batches = self.shown(self._batches_until_stop())
        metrics = evaluate(evaluated, batches, state.precision, state.task).metrics
        self.check()
        return metrics

    def check(self) -> None:
        """Raise StopRequested if any rank got a signal. Call it on all ranks."""
        self.stop.extend_deadline()
        if any_rank(self.stop.requested):
            raise StopRequested

    def _train_images(self, epoch: int) -> Iterator[Tensor]:
        """The micro-batches of the epoch, without `transform_batch`."""
        for images, _ in self.train_batches.epoch(epoch):
            self.check()
            yield from images.chunk(self.accumulation_steps)

    def _batches_until_stop(self) -> Iterator[tuple]:
        """The batches, without those after a signal. No collective: ranks may have different numbers of batches."""
        for batch in self.batches:
            self.stop.extend_deadline()
            yield batch
            if self.stop.requested:
                return
