"""The lines that the console shows of a job which does not show itself: passed over, or at work elsewhere."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from runner.files.readers import Unreadable, read_bytes
from runner.results.job import Job
from runner.results.run_state import RunState
from runner.tracking.console import STATUS_STYLES, RunConsole, is_plain
from runner.tracking.terminal import terminal


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


def show_error(folder: Path, state: RunState) -> None:
    """The traceback of a failed run, from its error.txt, or the reason that its summary gives."""
    try:
        text = read_bytes(folder / "error.txt").decode(errors="replace").rstrip()
    except Unreadable:
        text = ""
    RunConsole().message(text or state.error or "no reason given", "error")
