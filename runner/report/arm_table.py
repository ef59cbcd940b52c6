"""A row an arm: what varies, what was measured, how the runs ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.report.document import Table
from runner.report.overview import status_counts
from runner.results.arms import Arm, Axis
from runner.results.measures import label, scale
from runner.results.number_text import decimals, number_text

ALWAYS = ("validation/score", "test/score", "throughput/images_per_second")
BEST = "★"


def arm_table(axes: Sequence[Axis], arms: Sequence[Arm], measures: Sequence[str], score: str) -> Table:
    """Mean and standard deviation of each measure over the seeds, the study's `measures` first.

    A measure of which no run has a value has no column.

    A star stands with the best mean on the validation split among the arms whose runs all have a value.
    """
    names = list({label(name, score): name for name in [*ALWAYS, *measures]}.values())
    names = [name for name in names if any(arm.spread(name).values for arm in arms)]
    names = sorted(names, key=lambda name: name in ALWAYS)
    best = best_arm(arms)
    columns = ["", *(axis.key for axis in axes), *(label(name, score) for name in names), "runs", "status"]
    digits = {name: decimals(arms, name) for name in names}
    rows = [
        (
            BEST if arm is best else "",
            *(axis.called(arm.settings[axis.key]) for axis in axes),
            *(_cell(arm, name, digits[name]) for name in names),
            str(len(arm.runs)),
            status_counts(arm.runs),
        )
        for arm in arms
    ]
    numeric = {1 + index for index, axis in enumerate(axes) if axis.numbers}
    numeric |= set(range(1 + len(axes), len(columns) - 1))
    notes = ["Mean ± standard deviation over the seeds; in brackets how many have a value, where some have none."]
    if best:
        where = "test split, which stands in for validation" if best.runs[0].on_test else "validation split"
        notes.append(f"{BEST} best mean on the {where}, among the arms whose runs all have a value.")
    if any(run.on_test for arm in arms for run in arm.runs):
        notes.append("Where the test split stood in for validation, the validation score was chosen on the test split.")
    return Table(tuple(columns), tuple(rows), frozenset(numeric), " ".join(notes))


def best_arm(arms: Sequence[Arm]) -> Arm | None:
    """The arm with the best mean on the validation split; None where there is one arm, or two kinds of validation."""
    rivals = [arm for arm in arms if arm.count("completed") == len(arm.runs) and _mean(arm) > -math.inf]
    kinds = {run.on_test for arm in rivals for run in arm.runs}
    return max(rivals, key=_mean) if len(arms) > 1 and len(kinds) == 1 else None


def _mean(arm: Arm) -> float:
    mean = arm.spread("validation/score").mean
    return -math.inf if math.isnan(mean) else mean


def _cell(arm: Arm, name: str, digits: int | None) -> str:
    found, factor = arm.spread(name), scale(name)
    if not found.values:
        return "-"
    text = number_text(found.mean * factor, digits)
    if not math.isnan(found.deviation):
        text += f" ± {number_text(found.deviation * factor, digits)}"
    return text if len(found.values) == arm.seeds else f"{text} ({len(found.values)} of {arm.seeds})"
