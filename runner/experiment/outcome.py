"""What comes of a run: its summary, and what its folder and the console say of an error that ended it."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence

import torch

from runner.config.options import option_label
from runner.config.secrets import redact
from runner.config.text import visible
from runner.data.dataset import DataFault
from runner.data.loader_faults import loader_fault
from runner.distributed.collectives import is_connection_lost, is_distributed, is_timeout
from runner.experiment.check import Checked
from runner.experiment.entry import resume_command
from runner.experiment.summary import closing_rows, dataset_info, probe_rows, wandb_summary
from runner.files.atomic import CannotWrite, write_atomically
from runner.results.record import Record
from runner.results.run_folder import RunFolder
from runner.tracking.tracker import Tracker
from runner.training.divergence import Diverged
from runner.training.loop import Trainer
from runner.training.plan import Interrupted


class Outcome:
    """The summary of a run, which has failed until it says otherwise; set `trainer` once there is one."""

    def __init__(
        self, checked: Checked, folder: RunFolder, record: Record, overrides: Sequence[str], provenance: dict
    ) -> None:
        self.trainer: Trainer | None = None
        self.summary = {
            "status": "failed",
            "metrics": {checked.task.score: None, "loss": None},
            "best": {},
            "model": {
                "name": option_label(checked.settings.model),
                "num_params": checked.num_params,
                "multiply_adds": checked.multiply_adds,
            },
            "methods": checked.built.counts,
            "overrides": [word for word in overrides if not word.startswith("sweep.")],
            "provenance": provenance,
            "wandb_id": record.id,
            "error": None,
        }
        self._checked, self._folder = checked, folder
        self._started = time.perf_counter()
        self._failure: Exception | None = None
        self._rows: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def interruption_recorded(self) -> Iterator[None]:
        """A Ctrl-C in this context, in which there is no tracker yet, is recorded before it goes on."""
        try:
            yield
        except KeyboardInterrupt:
            self._folder.write_summary({**self.summary, "status": "interrupted"})
            raise

    @contextlib.contextmanager
    def recorded(self, tracker: Tracker) -> Iterator[None]:
        """Whatever ends what is done in this context is recorded, shown, and told to the caller by the status."""
        try:
            try:
                yield
            except Diverged as reason:
                self.summary |= {"status": "diverged", "error": str(reason)}
            except (Interrupted, KeyboardInterrupt):
                self.summary["status"] = "interrupted"
                self._say_how_to_resume()
            if self.trainer is not None:
                self._record_training(self.trainer)
        except Exception as error:  # the boundary of a run
            self._record_failure(error, tracker)

    def finish(self, tracker: Tracker) -> None:
        """Write the summary, and show the results."""
        summary = self.summary
        summary["data"] = dataset_info(self._checked.data)
        summary["rows"] = tracker.rows
        try:
            self._folder.write_summary(summary)
        except CannotWrite as error:
            summary["status"] = "failed"
            tracker.message(str(error), "error")
        rows = [*closing_rows(summary, self._checked.data, self._folder.path), *self._rows]
        if self.trainer is not None and self.trainer.schedule.total_steps == 0:
            rows = [*probe_rows(self._folder.path), *rows]
        tracker.finish(summary["status"], rows, summary=wandb_summary(summary))

    def status(self) -> str:
        """How the run has ended. Of several ranks a failure is raised, for the launcher to end the others."""
        if self._failure is not None and is_distributed():
            raise self._failure
        return self.summary["status"]

    def _record_training(self, trainer: Trainer) -> None:
        progress = trainer.progress
        if trainer.prober is not None:
            trainer.prober.finish(self._folder.metrics, step=progress.step)
        self.summary["best"] = progress.best
        self.summary["divergences"] = {"skipped_steps": progress.skipped_steps, "restores": progress.restores}
        self.summary["throughput"] = {
            "images_per_second": progress.images_per_second(),
            "images": progress.trained_images,
            "train_seconds": progress.train_seconds,
            "first_step_seconds": progress.first_step_seconds,
            "seconds": time.perf_counter() - self._started,
        }
        device = trainer.state.precision.device
        if device.type == "cuda":
            self.summary["throughput"]["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30

    def _record_failure(self, error: Exception, tracker: Tracker) -> None:
        self._failure = error
        message, trace = user_message(error), redact(traceback.format_exc())
        self.summary["error"] = redact(message or f"{type(error).__name__}: {error}")
        tracker.message(self.summary["error"] if message else trace.rstrip(), "error")
        with contextlib.suppress(CannotWrite):  # as on a full disk, of which the message above speaks
            write_atomically(self._folder.error, visible(trace, keep="\n\t"))
        if isinstance(error, CannotWrite):
            self._say_how_to_resume()

    def _say_how_to_resume(self) -> None:
        self._rows.append(("go on with", resume_command(self._folder, self._checked.settings)))


def user_message(error: Exception) -> str | None:
    """The message of an error that says it all, without a traceback."""
    if is_distributed() and is_timeout(str(error)):
        return "train.rank_timeout: another rank did not answer for so long."
    if is_distributed() and isinstance(error, RuntimeError) and is_connection_lost(str(error)):
        return "Another rank has died, or cannot be reached any more."
    error = loader_fault(error) or error
    return str(error) if isinstance(error, (DataFault, CannotWrite)) else None
