"""The tracker of the training loop: metrics file, W&B and console together."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from runner.tracking.console import Rows, RunConsole
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.wandb_run import WandbRun

EXIT_CODES = {"completed": 0, "diverged": 0, "failed": 1, "interrupted": 130}


class Tracker:
    """A run's metrics file, W&B run and console.

    `start`, `progress`, `evaluation`, `epoch` and `message` are methods of the console, `figure` is one of the W&B run.

    Use it as a context manager: at the end of the block the live display is removed and the W&B run is closed, with
    exit code 0 only if `finish` was called for a completed or diverged run.
    """

    def __init__(self, *, metrics: MetricsLog, wandb: WandbRun, console: RunConsole) -> None:
        self.metrics = metrics
        self.wandb = wandb
        self.console = console
        self.start = console.start
        self.progress = console.progress
        self.evaluation = console.evaluation
        self.epoch = console.epoch
        self.message = console.message
        self.figure = wandb.figure

    def log(self, row: Mapping[str, object]) -> None:
        """Write a row of metrics to the metrics file, then to W&B."""
        self.metrics.write(row)
        self.wandb.log(row)

    @property
    def rows(self) -> int:
        """The number of rows in the metrics file."""
        return self.metrics.rows

    def go_back(self, step: int) -> None:
        """Remove the rows after `step`, from which training continues; W&B ignores steps that it has."""
        self.metrics.cut_back(step)

    def finish(self, status: str, rows: Rows, *, summary: Mapping[str, object] | None = None) -> None:
        """Close the W&B run with `summary`, then show the results and the W&B commands."""
        self.wandb.summary({**(summary or {}), "status": status})
        self.wandb.finish(EXIT_CODES[status])
        commands = self.wandb.how_to_look()
        self.console.finish(status, [*rows, ("W&B", "\n".join(commands))] if commands else rows)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.console.stop()
        finally:
            self.wandb.finish(EXIT_CODES["interrupted" if kind is KeyboardInterrupt else "failed"])


class SilentTracker(Tracker):
    """The tracker of ranks other than 0: it records nothing."""

    rows = 0

    def __init__(self) -> None:
        pass

    def _nothing(self, *args, **kwargs) -> None:
        pass

    start = log = figure = progress = evaluation = epoch = message = go_back = finish = _nothing

    def __exit__(self, *_: object) -> None:
        pass
