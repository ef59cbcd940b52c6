"""The tables with a row for each run: all runs, and those without a result."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from runner.report.document import Cell, Code, Link, Table
from runner.results.number_text import format_measure
from runner.results.runs import Run

LONGEST_REASON = 400
MOST_UNFOLDED = 24  # rows
ABSENT = "-"


def run_table(runs: Sequence[Run], into: Path, score: str) -> Table:
    """A row for each run: a link from the folder `into`, how it ended, its scores and its command.

    A score that no run has, as in a study at initialization, gets no column.
    """
    scores = {
        split: [_percent(run.number(f"{split}/score") if run.status == "completed" else None) for run in runs]
        for split in ("validation", "test")
    }
    scores = {split: texts for split, texts in scores.items() if set(texts) != {ABSENT}}
    rows = tuple(
        (run_link(run, into), run.status, ABSENT if run.seed is None else str(run.seed), *own, _command(run))
        for run, *own in zip(runs, *scores.values(), strict=True)
    )
    columns = ("run", "status", "seed", *(f"{split} {score} (%)" for split in scores), "command")
    return Table(
        columns, rows, frozenset(range(2, len(columns) - 1)), folded=f"{len(rows):,} runs" * (len(rows) > MOST_UNFOLDED)
    )


def reason_table(runs: Sequence[Run], into: Path) -> Table:
    """Why each run has no result, or not a complete one."""
    rows = tuple((run_link(run, into), run.status, _reason(run)) for run in runs)
    return Table(("run", "status", "reason"), rows)


def run_link(run: Run, into: Path) -> Link:
    """A link from the folder `into` to that of a run."""
    path = os.path.relpath(run.folder, into)
    return Link(path, path)


def _percent(share: float | None) -> str:
    return ABSENT if share is None else format_measure(100 * share, 2)


def _command(run: Run) -> Cell:
    """The recorded command, or without one a command with the overrides."""
    recorded = run.section("provenance").get("command")
    if isinstance(recorded, str) and recorded:
        return Code(recorded)
    if not (run.summary or run.overrides):
        return ABSENT
    return Code(shlex.join(["python", "-m", "runner", *run.overrides]))


def _reason(run: Run) -> str:
    text = " ".join((run.error or "no reason given").split())
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
