"""The evaluation on the validation split while training goes on: what comes before it, and how it is broken off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from runner.data.dataset import EvaluationBatches, TrainBatches
from runner.distributed.collectives import all_reduce_buffers, any_rank
from runner.distributed.signals import GracefulStop, StopRequested
from runner.methods.method import Method
from runner.training.ema import Ema
from runner.training.evaluation import evaluate
from runner.training.precision import Precision
from runner.training.tasks import Task


@dataclass(frozen=True)
class Validation:
    """Evaluates the average of the weights, or `model` where there is none.

    Raises StopRequested, on all ranks together and with training as it was, if a signal comes to one of them.
    """

    model: nn.Module
    ema: Ema | None
    methods: Mapping[str, Method]
    train_batches: TrainBatches
    batches: EvaluationBatches
    accumulation_steps: int
    precision: Precision
    task: Task
    stop: GracefulStop

    def __call__(self, epoch: int) -> dict[str, float]:
        """The loss and the scores; `epoch` is that of the training images a method may look at before."""
        average = None if self.ema is None else self.ema.model
        evaluated = self.model if average is None else average
        self.check()
        with self.precision.autocast():
            for method in self.methods.values():
                method.before_evaluation(evaluated, lambda: self._train_images(epoch))
        all_reduce_buffers(self.model)
        if average is not None:
            all_reduce_buffers(average)
        metrics = evaluate(evaluated, self._until_requested(), self.precision, self.task).metrics
        self.check()
        return metrics

    def check(self) -> None:
        """Raise StopRequested if a signal came to any rank. To be called on all of them together."""
        self.stop.extend_deadline()
        if any_rank(self.stop.requested):
            raise StopRequested

    def _train_images(self, epoch: int) -> Iterator[Tensor]:
        """The images of the epoch once more, as they lay in the micro-batches but for what `transform_batch` did."""
        for images, _ in self.train_batches.epoch(epoch):
            self.check()
            yield from images.chunk(self.accumulation_steps)

    def _until_requested(self) -> Iterator[tuple]:
        """The batches, the rest of them left out once a signal came: the ranks may have a different number."""
        for batch in self.batches:
            self.stop.extend_deadline()
            yield batch
            if self.stop.requested:
                return
