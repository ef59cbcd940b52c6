"""A job of a sweep from the decision whether to run it to its status, and the lines that the console shows of it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runner.config.secrets import redact
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.files.atomic import CannotWrite, is_disk_fault, make_folder
from runner.files.readers import Unreadable, read_bytes
from runner.results.job import Job
from runner.results.run_folder import RunFolder
from runner.results.run_lock import Taken, hold
from runner.results.run_state import FAILED, RUNNING, RunState, read_state
from runner.tracking.console import RunConsole
from runner.tracking.sweep_console import SweepConsole


def run_job(settings: Settings, job: Job, *, retry_failed: bool, console: SweepConsole | None = None) -> str:
    """Run the job unless it has a result or another process has it; returns its status, or "running".

    Without the `console` of a sweep, the job prints all that a run prints. A failure, that of a folder that cannot be
    made too, is shown, recorded where that can be, and is no exception. Raises KeyboardInterrupt.
    """
    try:
        make_folder(job.path)
        with hold(job.path):
            state = read_state(job.path, taken=False)
            if state.is_left_alone(retry_failed=retry_failed):
                show_job(job, f"{state.text} before") if console is None else console.ended(job, state, seconds=None)
                return state.status
            try:
                from runner.experiment.processes import run  # imports torch, which a finished sweep does not need

                return run(settings, list(job.overrides), ["python", "-m", "runner", *job.overrides], job, console)
            except (Exception, SystemExit) as error:  # the boundary of a job: the others go on
                is_told = isinstance(error, SettingError | CannotWrite)  # whose message says it all
                reason = str(error) if is_told else f"{type(error).__name__}: {error}"
                record_failure(job, reason, reason if is_told else traceback.format_exc().rstrip())
                return FAILED
    except Taken:
        show_job(job, "running elsewhere") if console is None else console.running(job, "elsewhere")
        return RUNNING
    except OSError as error:
        return cannot_begin(job, error)


def cannot_begin(job: Job, error: OSError) -> str:
    """Show that a job's folder cannot be made, as where a file has its name; returns the status "failed"."""
    RunConsole().message(str(CannotWrite.from_os_error(job.path, error)), "error")
    return FAILED


def cannot_use(folder: Path, error: OSError) -> SettingError | CannotWrite:
    """What to raise where a folder for runs cannot be made: the disk may be full, or the path wrong."""
    told = CannotWrite.from_os_error(folder, error)
    return told if is_disk_fault(error) else SettingError(f"paths.outputs: {told}")


def record_failure(job: Job, reason: str, trace: str, *, show: bool = True) -> None:
    """Write the error.txt and summary.json of a job that could not write its own, and show what happened."""
    if show:
        RunConsole().message(redact(trace), "error")
    with suppress(OSError):  # of a full disk; shown
        spoken = [word for word in job.overrides if not word.startswith("sweep.")]
        RunFolder(job.path).write_failure(reason, trace, {"overrides": spoken})


def show_job(job: Job, what: str) -> None:
    """One line: which job, and what is with it."""
    print(f"job {job.number}/{job.total}: {job.name}  {what}", flush=True)


def job_labels(jobs: Sequence[Job]) -> dict[str, str]:
    """The overrides in which the jobs differ, their keys shortened, by the job's name."""
    from runner.report.console_table import short_labels  # imports scipy

    labels = short_labels([job.overrides for job in jobs])
    return {job.name: label for job, label in zip(jobs, labels, strict=True)}


def error_of(folder: Path, state: RunState) -> str:
    """The traceback of a failed run, from its error.txt, or the reason that its summary gives."""
    try:
        text = read_bytes(folder / "error.txt").decode(errors="replace").rstrip()
    except Unreadable:
        text = ""
    return text or state.error or "no reason given"
