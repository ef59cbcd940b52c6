"""How a run's folder stands, as any process can see: not begun, at work, ended in one way or another."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from runner.files.readers import LARGEST_LOG, Unreadable, is_there, read_bytes, read_json_object
from runner.results.run_lock import is_held
from runner.tracking.console import SCORES, format_share

TO_DO, RUNNING, INTERRUPTED, FAILED = "to do", "running", "interrupted", "failed"
BEGUN = ("record.json", "overrides.yaml")  # what a run has written that has begun; the second, in older versions
RESULTS = ("completed", "diverged")  # the statuses of a run that has nothing left to do


@dataclass(frozen=True)
class RunState:
    """`status` is "to do", "running", "completed", "diverged", "failed" or "interrupted", also by a sudden death.

    `step` is the last one that was recorded; `summary` is that of summary.json, empty where there is none.
    """

    status: str
    step: int = 0
    summary: dict = field(default_factory=dict, repr=False)

    @property
    def error(self) -> str | None:
        """What went wrong, where something did."""
        error = self.summary.get("error")
        return None if error is None else str(error)

    def is_left_alone(self, *, retry_failed: bool) -> bool:
        """Whether a sweep does not run it again: it has a result, or it failed and is not to be tried again."""
        return self.status in RESULTS or (self.status == FAILED and not retry_failed)

    @property
    def text(self) -> str:
        """The status, and of a completed run what it reached: `completed, test accuracy 98.3 %`."""
        found = self.summary.get("metrics")
        score = next((name for name in SCORES if isinstance(found, dict) and name in found), None)
        if self.status != "completed" or score is None or not isinstance(found[score], float | int):
            return self.status
        return f"{self.status}, test {SCORES[score]} {format_share(found[score])}"


def read_state(folder: Path, *, taken: bool | None = None) -> RunState:
    """The state of the run in `folder`, which need not exist.

    `taken` says whether a process works on it, for who has the folder and is not at work yet; else that is looked up.
    """
    taken = is_held(folder) if taken is None else taken
    summary = {} if taken is True else _summary(folder / "summary.json")
    if taken:
        return RunState(RUNNING, _last_step(folder / "metrics.jsonl"))
    if isinstance(summary.get("status"), str):
        step = 0 if summary["status"] in RESULTS else _last_step(folder / "metrics.jsonl")
        return RunState(summary["status"], step, summary)
    if any(is_there(folder / name) for name in BEGUN):
        return RunState(INTERRUPTED, _last_step(folder / "metrics.jsonl"))
    return RunState(TO_DO)


def _summary(path: Path) -> dict:
    try:
        return read_json_object(path)
    except Unreadable:
        return {}


def _last_step(path: Path) -> int:
    """The step of the last whole row of a metrics.jsonl, 0 where there is none."""
    try:
        lines = read_bytes(path, largest=LARGEST_LOG).splitlines()
    except Unreadable:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return 0
