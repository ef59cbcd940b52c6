"""What a training run is to do, how far it has come, and how it may end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runner.config.ranges import seconds_of
from runner.optim.schedules import LRLambda, PlateauRule


@dataclass
class Progress:
    """How far a run has come: `step` optimizer steps in all, `batch` of them in the epoch `epoch` (counted from 0).

    `seconds` are those of the whole training, `train_seconds` those of its steps; `first_step_seconds` is the part of
    these that the first step of each process took, over `first_step_images`. `doublings` is how often the number of
    epochs has been doubled, by a schedule that does so; `skipped_steps` and `restores` are what became of steps whose
    loss or gradient was not finite, `skipped_in_a_row` the last of them. `is_to_evaluate` if the steps before an
    evaluation are taken, and the evaluation is not done; `probes_left` are those that are to be run at this step.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    train_seconds: float = 0.0
    trained_images: int = 0
    best: dict = field(default_factory=dict)  # best.pt's validation metrics and its epoch (counted from 1)
    doublings: int = 0
    seconds: float = 0.0
    kept: list = field(default_factory=list)  # the same of each of the `keep_best` epochs, the best first
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    restores: int = 0
    first_step_seconds: float = 0.0
    first_step_images: int = 0
    is_to_evaluate: bool = False
    probes_left: list = field(default_factory=list)
    rows: int = 0  # in metrics.jsonl at the checkpoint; 0: not known

    @property
    def images_per_second(self) -> float | None:
        """Images trained on a second. None while there are only first steps.

        The first step of a process does not count: it starts CUDA, lets cuDNN search for its fastest kernels, compiles,
        and starts the loader's processes. Time between steps (evaluation, checkpoints, probes) does not count either.
        """
        images = self.trained_images - self.first_step_images
        return images / (self.train_seconds - self.first_step_seconds) if images else None


@dataclass(frozen=True)
class Plan:
    """What the loop is to do, and where its checkpoints go. `max_steps` ends it before `epochs` are done.

    `lr_lambda_for` gives the schedule of a training of so many steps.
    """

    epochs: int
    max_steps: int | None
    accumulation_steps: int
    log_every_steps: int
    checkpoint_every_steps: int | None
    last: Path
    best: Path
    about: dict  # what a reader of a checkpoint needs to know besides, as plain values
    lr_lambda_for: Callable[[int], LRLambda]
    plateau: PlateauRule | None = None
    max_time: str | None = None
    early_stopping_epochs: int | None = None
    evaluate_every_epochs: int = 1
    checkpoint_every_epochs: int = 1
    checkpoint_every_minutes: float | None = None
    keep_best: int = 1
    on_divergence: str = "stop"
    max_divergences: int = 3
    divergence_lr_factor: float = 0.5

    def epochs_of(self, progress: Progress) -> int:
        """The number of epochs as it stands."""
        return self.epochs * 2**progress.doublings

    def total_steps(self, progress: Progress, steps_per_epoch: int) -> int:
        """The number of optimizer steps as it stands."""
        return steps_of(self.epochs_of(progress), steps_per_epoch, self.max_steps)

    def lr_factor(self, progress: Progress) -> float:
        """What the learning rate is multiplied with, since training went back after it had diverged."""
        return self.divergence_lr_factor**progress.restores

    def out_of_time(self, seconds: float) -> bool:
        """Whether a training of so many seconds has had its time."""
        return self.max_time is not None and seconds >= seconds_of(self.max_time)

    def should_extend(self, progress: Progress, steps_per_epoch: int) -> bool:
        """Whether the number of epochs is doubled now: the schedule wants it while the validation score still rises."""
        epochs = self.epochs_of(progress)
        if (
            self.plateau is None
            or progress.batch > 0
            or self.total_steps(progress, steps_per_epoch) < epochs * steps_per_epoch
        ):
            return False  # within an epoch, or where max_steps ends the training
        return self.plateau.doubles(
            epochs_done=progress.epoch,
            epochs=epochs,
            best_epoch=progress.best["epoch"],
            doublings=progress.doublings,
        )

    def why_ended(self, progress: Progress, score: str, time_is_up: bool) -> str | None:
        """Why training ends before its epochs and steps are done; None if it does not."""
        if self.stops_early(progress):
            return f"no better {score} on the validation split for {self.early_stopping_epochs} epochs"
        return f"train.max_time={self.max_time} is over" if time_is_up else None

    def stops_early(self, progress: Progress) -> bool:
        """Whether the validation score has not risen for so many epochs that training ends."""
        patience = self.early_stopping_epochs
        return patience is not None and bool(progress.best) and progress.epoch - progress.best["epoch"] >= patience


class Interrupted(Exception):
    """A signal asked the loop to end; a checkpoint has been written."""


def steps_of(epochs: int, steps_per_epoch: int, max_steps: int | None) -> int:
    """The optimizer steps of so many epochs, at most `max_steps` of them."""
    steps = epochs * steps_per_epoch
    return steps if max_steps is None else min(steps, max_steps)
