"""A job of a sweep from the decision whether to run it to its status, and the lines that the console shows of it."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from runner.config.secrets import redact
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.files.atomic import CannotWrite, is_disk_fault, make_folder
from runner.files.readers import Unreadable, read_bytes
from runner.results.job import Job
from runner.results.run_folder import RunFolder
from runner.results.run_lock import Taken, hold
from runner.results.run_state import FAILED, RUNNING, RunState, read_state
from runner.tracking.console import STATUS_STYLES, RunConsole, is_plain
from runner.tracking.terminal import terminal


def run_job(settings: Settings, job: Job, *, retry_failed: bool) -> str:
    """Run the job unless it has a result or another process has it; returns its status, or "running".

    A failure, that of a folder that cannot be made too, is shown, recorded where that can be, and is no exception.
    Raises KeyboardInterrupt.
    """
    try:
        make_folder(job.path)
        with hold(job.path):
            state = read_state(job.path, taken=False)
            if state.is_left_alone(retry_failed=retry_failed):
                show_job(job, state.text, "before")
                return state.status
            try:
                from runner.experiment.processes import run  # imports torch, which a finished sweep does not need

                return run(settings, list(job.overrides), ["python", "-m", "runner", *job.overrides], job)
            except (Exception, SystemExit) as error:  # the boundary of a job: the others go on
                is_told = isinstance(error, SettingError | CannotWrite)  # whose message says it all
                reason = str(error) if is_told else f"{type(error).__name__}: {error}"
                record_failure(job, reason, reason if is_told else traceback.format_exc().rstrip())
                return FAILED
    except Taken:
        show_job(job, "running elsewhere")
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


def show_job(job: Job, what: str, when: str = "") -> None:
    """One line: which job, what is with it, and when it came to that."""
    console = terminal()
    status, _, rest = what.partition(" ")
    if is_plain(console):
        text = Text(f"job {job.number}/{job.total}: {job.name}  {' '.join(filter(None, (what, when)))}")
    else:
        parts = (
            (f"job {job.number}/{job.total}", "cyan"),
            f"  {job.name}  ",
            (status, STATUS_STYLES.get(status, "bold")),
        )
        text = Text.assemble(*parts, " ".join(filter(None, ("", rest, when))))
    console.print(text, soft_wrap=True)
    console.file.flush()


def error_of(folder: Path, state: RunState) -> str:
    """The traceback of a failed run, from its error.txt, or the reason that its summary gives."""
    try:
        text = read_bytes(folder / "error.txt").decode(errors="replace").rstrip()
    except Unreadable:
        text = ""
    return text or state.error or "no reason given"
