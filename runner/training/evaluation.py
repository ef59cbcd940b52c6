"""The loss and the scores of a model on a split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from runner.data.dataset import DataFault, EvaluationBatches
from runner.distributed.collectives import all_reduce_sum
from runner.layers.standardized_conv import cached_standardized_weights
from runner.training.precision import Precision
from runner.training.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by name, the task's score first; `counts` are what the scores were computed from."""

    metrics: dict[str, float]
    counts: list[int]
    num_images: int


@torch.inference_mode()
def evaluate(model: nn.Module, batches: EvaluationBatches, precision: Precision, task: Task) -> Evaluation:
    """The task's scores, and its loss in nats, without any training-time change such as label smoothing.

    Sums are kept on the device and read once, after the last batch; over several processes they are added. The model
    is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    counts = task.new_counts(precision.device)
    sums = torch.zeros(2, dtype=torch.float64, device=precision.device)
    try:
        with cached_standardized_weights(model):
            for images, targets in batches:
                with precision.autocast():
                    logits = model(images)
                loss, number = task.measure(counts, logits.float(), targets)
                sums[0] += loss
                sums[1] += number
    finally:
        model.train(was_training)
    loss, number = all_reduce_sum(sums).tolist()
    totals = all_reduce_sum(counts).tolist()
    if number == 0:
        raise DataFault("An evaluation had no image: nothing is measured.")
    scores = task.scores(totals)
    if math.isnan(scores[task.score]):
        raise DataFault(f"None of the {int(number)} masks of an evaluation has a labelled pixel: nothing is measured.")
    return Evaluation({**scores, "loss": loss / number}, totals, int(number))
