"""results.csv and arms.csv: every run of a sweep, and every arm, on a line, at full precision."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from runner.files.atomic import write_atomically
from runner.results.arms import Arm, Axis
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
    write_atomically(path, _as_csv(rows))


def arms_csv(axes: Sequence[Axis], arms: Sequence[Arm], measures: Sequence[str]) -> str:
    """A line for each arm: its settings, its runs, and mean, standard deviation and number of seeds of each measure.

    A share is one of 1, as in results.csv.
    """
    columns = [f"{name}{end}" for name in measures for end in ("", "/sd", "/seeds")]
    rows: list[list[object]] = [[*(axis.key for axis in axes), "runs", *columns]]
    for arm in arms:
        spreads = [arm.spread(name) for name in measures]
        numbers = [number for each in spreads for number in (each.mean, each.deviation, len(each.values))]
        known = [None if math.isnan(number) else number for number in numbers]
        rows.append([*(arm.settings[axis.key] for axis in axes), len(arm.runs), *known])
    return _as_csv(rows)


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def _inert(cell: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; numbers stay."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
