"""The table with the score of each class on the test split, for every arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from runner.report.document import Table
from runner.results.arms import Arm
from runner.results.number_text import format_share

KEYS = {"accuracy_by_class": "accuracy", "iou_by_class": "IoU"}  # of summary.json, and what they hold
MOST_CLASSES = 20


def class_table(arms: Sequence[Arm]) -> Table | None:
    """The mean over an arm's runs, a row for each class; of more than 20 the lowest. None without any."""
    means = [_means(arm) for arm in arms]
    names = list(dict.fromkeys(name for each in means for name in each))
    if not names:
        return None
    if len(names) > MOST_CLASSES:
        lowest = {name: min(each.get(name, math.inf) for each in means) for name in names}
        names = sorted(names, key=lambda name: lowest[name])[:MOST_CLASSES]
    rows = [(name, *(format_share(each[name]) if name in each else "-" for each in means)) for name in names]
    return Table(("class", *(arm.label for arm in arms)), tuple(rows), frozenset(range(1, len(arms) + 1)))


def what_is_measured(arms: Sequence[Arm]) -> str:
    """The score that the runs have by class."""
    return next(word for key, word in KEYS.items() if any(run.section(key) for arm in arms for run in arm.runs))


def _means(arm: Arm) -> dict[str, float]:
    """The mean of each class over the runs that have a number for it."""
    values: dict[str, list[float]] = {}
    for run in arm.runs:
        for key in KEYS:
            for name, share in run.section(key).items():
                if isinstance(share, (int, float)) and math.isfinite(share):
                    values.setdefault(name, []).append(share)
    return {name: statistics.fmean(shares) for name, shares in values.items()}
