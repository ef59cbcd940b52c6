"""The state of a run, read from its folder: to do, running, or how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runner.files.readers import is_there
from runner.results.metrics import SCORES, last_step, read_summary, score_of, section, summary_number
from runner.results.number_text import format_share
from runner.results.run_lock import is_held

TO_DO, RUNNING, INTERRUPTED, FAILED = "to do", "running", "interrupted", "failed"
START_FILES = ("record.json", "overrides.yaml")  # files that show that a run has begun; older versions wrote the second
RESULTS = ("completed", "diverged")  # the statuses of a run that has nothing left to do


@dataclass(frozen=True)
class RunState:
    """The state of a run: "to do", "running", "completed", "diverged", "failed" or "interrupted" (also if killed).

    `step` is the last recorded one; `summary` is the content of summary.json.
    """

    status: str
    step: int = 0
    summary: dict = field(default_factory=dict, repr=False)

    @property
    def error(self) -> str | None:
        """The error that ended the run, None without one."""
        error = self.summary.get("error")
        return None if error is None else str(error)

    def is_left_alone(self, *, retry_failed: bool) -> bool:
        """Whether a sweep skips the run: it has a result, or it failed and `retry_failed` is off."""
        return self.status in RESULTS or (self.status == FAILED and not retry_failed)

    @property
    def text(self) -> str:
        """The status, with the test score of a completed run: `completed, test accuracy 98.3 %`."""
        score = score_of(section(self.summary, "metrics"))
        share = summary_number(self.summary, f"test/{score}")
        if self.status != "completed" or share is None:
            return self.status
        return f"{self.status}, test {SCORES[score]} {format_share(share)}"


def read_state(folder: Path, *, taken: bool | None = None) -> RunState:
    """The state of the run in `folder`, which need not exist.

    `taken` says whether a process works on it; None looks at the lock. Pass False if you hold the lock yourself but
    have not started.
    """
    if is_held(folder) if taken is None else taken:
        return RunState(RUNNING, last_step(folder))
    summary = read_summary(folder)
    if isinstance(summary.get("status"), str):
        return RunState(summary["status"], 0 if summary["status"] in RESULTS else last_step(folder), summary)
    if any(is_there(folder / name) for name in START_FILES):
        return RunState(INTERRUPTED, last_step(folder))
    return RunState(TO_DO)
