"""results.csv: every run of a sweep on a line, at full precision."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from runner.files.atomic import write_atomically
from runner.results.measures import measure
from runner.results.runs import Run

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how what a spreadsheet computes begins


def write_results_csv(runs: Sequence[Run], path: str | os.PathLike[str], measures: Sequence[str] = ()) -> None:
    """Write one line a run with a column for every key that is overridden and for each of `measures`; atomic.

    `job` is the run's folder relative to that of the file. A value that a run does not have is empty.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    scores = list(dict.fromkeys(run.score for run in runs if run.has_summary)) or ["accuracy"]
    metrics = [f"{split}_{score}" for score in scores for split in ("best_validation", "test")]
    heading = ["best_validation_loss", "best_epoch", "best_on", "test_loss", "images_per_second", "error"]
    text = io.StringIO()
    rows = [["job", "status", *keys, *metrics, *heading, *measures]]
    for run in runs:
        values = [
            value for score in scores for value in ((run.best, run.final) if run.score == score else (None, None))
        ]
        best_on = None if run.best is None else "test" if run.on_test else "validation"
        values += [run.best_loss, run.best_epoch, best_on, run.final_loss, run.images_per_second, run.error]
        found = [measure(run, name) for name in measures]
        values += [None if math.isnan(value) else value for value in found]
        job = os.path.relpath(run.folder, Path(path).parent)
        rows.append([job, run.status, *(run.settings.get(key) for key in keys), *values])
    csv.writer(text, lineterminator="\n").writerows([_inert(cell) for cell in row] for row in rows)
    write_atomically(path, text.getvalue())


def _inert(cell: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; numbers stay."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
