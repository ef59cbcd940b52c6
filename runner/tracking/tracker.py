"""The tracker of the training loop: metrics file, W&B and console together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from runner.tracking.console import Rows, RunConsole
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.wandb_run import WandbRun

EXIT_CODES = {"completed": 0, "diverged": 0, "failed": 1, "interrupted": 130}


class Tracker:
    """A run's metrics file, W&B run and console.

    Use it as a context manager: at the end of the block the live display is removed and the W&B run is closed, with
    exit code 0 only if `finish` was called for a completed or diverged run.
    """

    def __init__(self, *, metrics: MetricsLog, wandb: WandbRun, console: RunConsole) -> None:
        self.metrics = metrics
        self.wandb = wandb
        self.console = console

    def start(self, title: str, rows: Rows, **about: object) -> None:
        """Show the settings; see RunConsole.start."""
        self.console.start(title, rows, **about)

    def log(self, row: Mapping[str, object]) -> None:
        """Write a row of metrics to the metrics file, then to W&B."""
        self.metrics.write(row)
        self.wandb.log(row)

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Log the picture that a probe drew into the run's folder to W&B."""
        self.wandb.figure(name, path, step=step)

    def progress(self, *args, **kwargs) -> None:
        """Update the live display; see RunConsole.progress."""
        self.console.progress(*args, **kwargs)

    def epoch(self, row: Mapping[str, object]) -> None:
        """Show an epoch; see RunConsole.epoch."""
        self.console.epoch(row)

    def message(self, text: str, kind: str = "note") -> None:
        """Show a note, a warning or an error."""
        self.console.message(text, kind)

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

    start = log = figure = progress = epoch = message = go_back = finish = _nothing

    def __exit__(self, *_: object) -> None:
        pass
