"""The clocks of a run: how long it has been training, what is due because of it, and what its steps take."""

from __future__ import annotations

import time

from runner.distributed.collectives import rank
from runner.training.plan import Plan, Progress


class Clock:
    """Counts the seconds of a training, over all the times that it was resumed; the first rank's decides."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.start(progress)

    def start(self, progress: Progress) -> None:
        """Begin, or go on, to count."""
        self._saved = time.perf_counter()
        self._began = self._saved - progress.seconds
        self.time_is_up = self.plan.out_of_time(progress.seconds)

    def poll(self) -> tuple[bool, bool]:
        """Whether the run's time is up, and whether a checkpoint is due."""
        if rank() > 0:
            return False, False
        now, minutes = time.perf_counter(), self.plan.checkpoint_every_minutes
        return self.plan.out_of_time(now - self._began), minutes is not None and now - self._saved >= 60 * minutes

    def saved(self, progress: Progress) -> None:
        """Note in `progress` how long training has taken, as a checkpoint is about to be written."""
        self._saved = time.perf_counter()
        progress.seconds = self._saved - self._began


class StepTimer:
    """Adds up what the steps of this process take, the first one apart; see `Progress.images_per_second`."""

    def __init__(self) -> None:
        self.is_first = True  # no step of this process has been timed yet

    def start(self) -> None:
        """Begin to time the next step."""
        self._since = time.perf_counter()

    def stop(self, progress: Progress, batch_size: int) -> None:
        """Add the time since the last call to `progress`; a GPU must have been waited for."""
        seconds = time.perf_counter() - self._since
        self._since += seconds
        progress.train_seconds += seconds
        if self.is_first:
            self.is_first = False
            progress.first_step_seconds += seconds
            progress.first_step_images += batch_size
