"""Every run on a row: where it lies, how it ended, how to run it again; and why runs have no result."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from runner.report.document import Cell, Code, Link, Table
from runner.report.number_text import number_text
from runner.report.runs import UNREADABLE, Run, section

LONGEST_REASON = 400
MOST_UNFOLDED = 24  # rows


def run_table(runs: Sequence[Run], into: Path, score: str) -> Table:
    """The runs with links from the folder `into` to theirs, and the command that each was made with."""
    rows = tuple(
        (
            _link(run, into),
            run.status,
            "-" if run.seed is None else str(run.seed),
            _percent(run.best if run.status == "completed" else None),
            _percent(run.final if run.status == "completed" else None),
            _command(run),
        )
        for run in runs
    )
    columns = ("run", "status", "seed", f"validation {score} (%)", f"test {score} (%)", "command")
    return Table(columns, rows, frozenset({2, 3, 4}), folded=f"{len(rows):,} runs" * (len(rows) > MOST_UNFOLDED))


def reason_table(runs: Sequence[Run], into: Path) -> Table:
    """Why each of the runs has no result, or not a whole one."""
    rows = tuple((_link(run, into), run.status, _reason(run)) for run in runs)
    return Table(("run", "status", "reason"), rows)


def _link(run: Run, into: Path) -> Link:
    path = os.path.relpath(run.folder, into)
    return Link(path, path)


def _percent(share: float | None) -> str:
    return "-" if share is None else number_text(100 * share, 2)


def _command(run: Run) -> Cell:
    """The command as it was recorded, else one made of the overrides."""
    recorded = section(run.summary, "provenance").get("command")
    if isinstance(recorded, str) and recorded:
        return Code(recorded)
    if run.status == UNREADABLE and not run.overrides:
        return "-"
    return Code(shlex.join(["python", "-m", "runner", *run.overrides]))


def _reason(run: Run) -> str:
    text = " ".join((run.error or "no reason given").split())
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
