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

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of cells that a spreadsheet computes


def write_results_csv(runs: Sequence[Run], path: str | os.PathLike[str], measures: Sequence[str] = ()) -> None:
    """Write a line for each run: its overrides, its numbers as `Run.number` names them, and `measures`; atomic.

    `job` is the run's folder relative to the file's. A value that a run does not have is empty.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    scores = list(dict.fromkeys(run.score for run in runs if run.summary)) or ["accuracy"]
    names = [f"{split}/{score}" for score in scores for split in ("validation", "test")]
    names += ["validation/loss", "validation/epoch", "test/loss", "throughput/images_per_second"]
    measures = [name for name in measures if name not in names]
    rows = [["job", "status", *keys, *names, "best_on", "error", *measures]]
    for run in runs:
        best_on = None if run.number("validation/score") is None else "test" if run.on_test else "validation"
        rows.append(
            [
                os.path.relpath(run.folder, Path(path).parent),
                run.status,
                *(run.settings.get(key) for key in keys),
                *map(run.number, names),
                best_on,
                run.error,
                *(None if math.isnan(value := measure(run, name)) else value for name in measures),
            ]
        )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(cell) for cell in row] for row in rows)
    write_atomically(path, text.getvalue())


def _inert(cell: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; numbers stay."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
