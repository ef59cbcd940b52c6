"""An experiment from its settings to its run folder: the whole story."""

from __future__ import annotations

from collections.abc import Callable

from runner.config.settings import Settings
from runner.distributed.collectives import rank
from runner.experiment.check import Checked, check
from runner.experiment.entry import Entry, follow_rank0, take_folder
from runner.experiment.outcome import Outcome
from runner.experiment.setup import prepare
from runner.experiment.testing import train_and_test
from runner.experiment.tracking import open_tracker, show_start
from runner.results.job import Job
from runner.tracking.console import RunConsole
from runner.tracking.job_console import JobConsole
from runner.tracking.provenance import provenance
from runner.tracking.sweep_console import SweepConsole
from runner.tracking.tracker import SilentTracker
from runner.training.checkpoint import load_latest
from runner.training.checkpoint_content import check_last
from runner.training.divergence import Diverged
from runner.training.plan import Interrupted


def run(
    settings: Settings,
    overrides: list[str],
    command: list[str],
    job: Job | None = None,
    console: SweepConsole | None = None,
    *,
    announce: Callable[[str], object] | None = None,
) -> str:
    """Run an experiment; returns "completed", "diverged", "interrupted" or "failed", as its summary.json says.

    Raises SettingError before anything is written; whatever fails later ends in the status "failed", with the
    error shown, in the folder's error.txt and in its summary. Of several ranks each calls it. The `console` of a sweep
    shows a job of it; `announce` is called with the folder's path before the run begins.
    """
    checked = check(settings)
    if rank() > 0:
        return run_worker(checked)
    entry = take_folder(checked, overrides, job)
    with entry.lock:
        if announce is not None:
            announce(str(entry.folder.path))
        if entry.finished_status is not None:
            RunConsole().message(f"{entry.folder.path}: {entry.finished_status} before; nothing is left to do.")
            return entry.finished_status
        output = RunConsole() if console is None else JobConsole(console, job)
        return run_rank0(checked.going_on_in(entry.formats), entry, overrides, command, job, output)


def run_rank0(
    checked: Checked,
    entry: Entry,
    overrides: list[str],
    command: list[str],
    job: Job | None,
    console: RunConsole | JobConsole,
) -> str:
    """The run in the only process, or in the first of several, which alone writes."""
    record = entry.begin(checked.settings, overrides)
    outcome = Outcome(checked, entry.folder, record, overrides, provenance(command))
    with outcome.interruption_recorded():  # W&B may take seconds
        tracker = open_tracker(checked, entry, record, overrides, console)
    with tracker:
        with outcome.recorded(tracker):
            show_start(tracker, checked, entry, overrides, job)
            outcome.trainer = trainer = prepare(checked, entry.folder, entry.checkpoint, record, tracker)
            outcome.summary |= train_and_test(trainer, checked, entry.folder, tracker)
        outcome.finish(tracker)
    return outcome.status()


def run_worker(checked: Checked) -> str:
    """The run in one of the other processes: it trains and evaluates along, and writes nothing."""
    folder, formats, finished_status = follow_rank0()
    if finished_status is not None:
        return finished_status
    checked = checked.going_on_in(formats)
    latest = load_latest(folder.checkpoint("last"), checked.precision.device, check=check_last)
    tracker = SilentTracker()
    try:
        trainer = prepare(checked, folder, latest.checkpoint if latest else None, None, tracker)
        return train_and_test(trainer, checked, folder, tracker)["status"]
    except Diverged:
        return "diverged"
    except (Interrupted, KeyboardInterrupt):
        return "interrupted"
