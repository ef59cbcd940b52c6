"""The output of a job of a sweep that runs in the sweep's process, or in processes of its own, on a terminal."""

from __future__ import annotations

import io
import math
import time

from runner.results.job import Job
from runner.results.metrics import SCORES
from runner.results.number_text import format_number, format_share
from runner.tracking.console import REFRESH_SECONDS, Rows, RunConsole
from runner.tracking.sweep_console import SweepConsole
from runner.tracking.terminal import terminal


class JobConsole:
    """Has the methods of a RunConsole. Its lines go to console.txt in the job's folder; the terminal has the live
    display of the sweep, and what is a warning or an error.
    """

    def __init__(self, sweep: SweepConsole, job: Job) -> None:
        self._sweep, self._job = sweep, job
        self._file = io.TextIOWrapper(job.open_output(), encoding="ascii", errors="backslashreplace")
        self._lines = RunConsole(console=terminal(file=self._file, force_terminal=False))
        self._last_drawn = -math.inf
        self._step = 0
        self.start, self.epoch = self._lines.start, self._lines.epoch

    def progress(
        self,
        step: int,
        total_steps: int,
        epoch: int,
        epochs: int,
        loss: float | None = None,
        score: tuple[str, float | None] = ("accuracy", None),
        *args: float | None,
        **options: object,
    ) -> None:
        """Update the live display with the arguments of RunConsole's method; cheap to call often."""
        self._lines.progress(step, total_steps, epoch, epochs, loss, score, *args, **options)
        self._step = step
        quality = f"loss {format_number(loss)}, {SCORES[score[0]]} {format_share(score[1])}"
        self._draw(f"epoch {epoch}/{epochs}, {quality}")

    def evaluation(self, what: str, images: int, total: int) -> None:
        """Show how many images of an evaluation after training are done."""
        self._lines.evaluation(what, images, total)
        self._draw(f"{what}: {images:,} of {total:,} images")

    def message(self, text: str, kind: str = "note") -> None:
        """Show a warning or an error on the terminal too."""
        self._lines.message(text, kind)
        if kind != "note":
            self._sweep.message(f"{self._sweep.label(self._job)}: {text}", kind)

    def finish(self, status: str, rows: Rows) -> None:
        """Write the results into console.txt."""
        self._lines.finish(status, rows)

    def stop(self) -> None:
        """Remove the live display and close the file."""
        self._sweep.stop()
        self._file.close()

    def _draw(self, what: str) -> None:
        now = time.monotonic()
        if now - self._last_drawn >= REFRESH_SECONDS:
            self._last_drawn = now
            self._sweep.at_work(self._job, self._step, what)
