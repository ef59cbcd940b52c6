"""The plan of a training run, its progress, its clocks and its learning rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch.optim import Optimizer

from runner.config.ranges import seconds_of
from runner.distributed.collectives import rank
from runner.optim.schedules import LRLambda, PlateauRule, make_schedule


@dataclass
class Progress:
    """How far a run has come: `step` optimizer steps in all, `batch` of them in epoch number `epoch`, from 0.

    `seconds` is the time of the whole training and `train_seconds` that of its steps, of which `first_step_seconds`
    is the first step of each process, over `first_step_images`. `doublings` counts how often the schedule has doubled
    the epochs; `skipped_steps` and `restores` how often a loss or gradient was not finite. `is_to_evaluate` is true
    between an epoch's last step and its evaluation; `probes_left` are the probes still to run at this step.
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

    def count_step(self, batch_size: int) -> None:
        """Count an optimizer step over `batch_size` images."""
        self.batch += 1
        self.step += 1
        self.trained_images += batch_size

    @property
    def timed(self) -> tuple[int, float]:
        """The images of the steps whose time counts as that of training, and their seconds.

        Leaves out the first step of each process, which initializes CUDA, picks cuDNN kernels, compiles, and starts
        the loader's workers; and the time between steps (evaluation, checkpoints, probes).
        """
        return self.trained_images - self.first_step_images, self.train_seconds - self.first_step_seconds

    def images_per_second(self, since: tuple[int, float] = (0, 0.0)) -> float | None:
        """Training throughput, of the whole run or since `timed` was as given. None before a timed step."""
        images, seconds = (now - before for now, before in zip(self.timed, since, strict=True))
        return images / seconds if images else None


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of the loop, and where its checkpoints go. Training ends after `epochs` or `max_steps`.

    `lr_lambda_for` returns the learning-rate schedule of a training of so many steps.
    """

    epochs: int
    max_steps: int | None
    accumulation_steps: int
    log_every_steps: int
    checkpoint_every_steps: int | None
    last: Path
    best: Path
    about: dict  # plain values for readers of a checkpoint
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
    cuda_graph: bool | str = False  # auto: off, until a run on a GPU has confirmed it

    def epochs_of(self, progress: Progress) -> int:
        """The number of epochs, with the doublings so far."""
        return self.epochs * 2**progress.doublings

    def total_steps(self, progress: Progress, steps_per_epoch: int) -> int:
        """The number of optimizer steps, with the doublings so far."""
        return steps_of(self.epochs_of(progress), steps_per_epoch, self.max_steps)

    def lr_factor(self, progress: Progress) -> float:
        """The factor of the learning rate after `progress.restores` divergences."""
        return self.divergence_lr_factor**progress.restores

    def is_out_of_time(self, seconds: float) -> bool:
        """Whether a training of so many seconds has reached `max_time`."""
        return self.max_time is not None and seconds >= seconds_of(self.max_time)

    def should_extend(self, progress: Progress, steps_per_epoch: int) -> bool:
        """Whether to double the epochs now, because the validation score still improves. Never if max_steps ends it."""
        epochs = self.epochs_of(progress)
        is_whole = self.total_steps(progress, steps_per_epoch) == epochs * steps_per_epoch
        if self.plateau is None or progress.batch > 0 or not is_whole:
            return False
        return self.plateau.doubles(
            epochs_done=progress.epoch,
            epochs=epochs,
            best_epoch=progress.best["epoch"],
            doublings=progress.doublings,
        )

    def why_ended(self, progress: Progress, score: str, time_is_up: bool) -> str | None:
        """Why training ends before its epochs and steps are done. None if it does not."""
        patience = self.early_stopping_epochs
        if patience is not None and progress.best and progress.epoch - progress.best["epoch"] >= patience:
            return f"no better {score} on the validation split for {patience} epochs"
        return f"train.max_time={self.max_time} is over" if time_is_up else None


class Interrupted(Exception):
    """A signal has ended the loop, and a checkpoint was written."""


def steps_of(epochs: int, steps_per_epoch: int, max_steps: int | None) -> int:
    """The optimizer steps of so many epochs, at most `max_steps`."""
    steps = epochs * steps_per_epoch
    return steps if max_steps is None else min(steps, max_steps)


class LRSchedule:
    """The learning rate by optimizer step, for the length of training as it stands now."""

    def __init__(self, optimizer: Optimizer, plan: TrainingPlan, steps_per_epoch: int) -> None:
        self.optimizer = optimizer
        self.plan = plan
        self.steps_per_epoch = steps_per_epoch

    def restart(self, progress: Progress) -> None:
        """Continue at `progress.step`, with its number of epochs and its factor of the learning rate."""
        self.epochs = self.plan.epochs_of(progress)
        self.total_steps = self.plan.total_steps(progress, self.steps_per_epoch)
        lr_lambda, factor = self.plan.lr_lambda_for(self.total_steps), self.plan.lr_factor(progress)
        self._lr_lambda = lambda step: factor * lr_lambda(step)
        self._scheduler = make_schedule(self.optimizer, self._lr_lambda, step=progress.step)
        self.lr = self.lr_at(max(progress.step, 1))

    def step(self) -> None:
        """Move on to the next step. `lr` is the rate of the step just taken."""
        self.lr = self._scheduler.get_last_lr()[0]
        self._scheduler.step()

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return self.optimizer.param_groups[0]["initial_lr"] * self._lr_lambda(step - 1)


class Clock:
    """The time of a training over all its resumes. Rank 0's clock decides."""

    def __init__(self, plan: TrainingPlan, progress: Progress) -> None:
        self.plan = plan
        self.start(progress)

    def start(self, progress: Progress) -> None:
        """Count on from `progress.seconds`."""
        self._checkpoint_at = time.perf_counter()
        self._start_at = self._checkpoint_at - progress.seconds
        self.time_is_up = self.plan.is_out_of_time(progress.seconds)

    def poll(self) -> tuple[bool, bool]:
        """Whether the time is up, and whether `checkpoint_every_minutes` have passed. False on other ranks than 0."""
        if rank() > 0:
            return False, False
        now, minutes = time.perf_counter(), self.plan.checkpoint_every_minutes
        is_due = minutes is not None and now - self._checkpoint_at >= 60 * minutes
        return self.plan.is_out_of_time(now - self._start_at), is_due

    def note_checkpoint(self, progress: Progress) -> None:
        """Update `progress.seconds` for a checkpoint that is about to be written."""
        self._checkpoint_at = time.perf_counter()
        progress.seconds = self._checkpoint_at - self._start_at


class StepTimer:
    """Adds the time of steps to `Progress`, that of this process's first step apart."""

    def __init__(self) -> None:
        self.is_first = True

    def start(self) -> None:
        """Start, or leave out the time since the last `stop`."""
        self._since = time.perf_counter()

    def stop(self, progress: Progress, batch_size: int) -> None:
        """Add the time since `start` or the last `stop`. Synchronize a GPU before."""
        seconds = time.perf_counter() - self._since
        self._since += seconds
        progress.train_seconds += seconds
        if self.is_first:
            self.is_first = False
            progress.first_step_seconds += seconds
            progress.first_step_images += batch_size
