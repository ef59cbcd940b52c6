"""Learning curves of the arms over one another, from their runs' metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from runner.figures import draw
from runner.measurement import Measurement
from runner.report.arms import Arm
from runner.report.runs import Run
from runner.tracking.metrics_log import MetricsLog

MOST_WITH_TRAINING = 3  # arms; of more the curves of both splits cannot be told apart


def curves_figure(arms: Sequence[Arm]) -> Figure | None:
    """Loss and score by epoch, an arm a line and its seeds a band; None where no run has come through an epoch.

    Of more than three arms the validation split alone is drawn.
    """
    splits = ("train", "validation") if len(arms) <= MOST_WITH_TRAINING else ("validation",)
    found = [(arm.label, [curve for run in arm.runs if (curve := _curve(run, splits))]) for arm in arms]
    found = [(label, curves) for label, curves in found if curves]
    return draw("learning_curves", found) if found else None


def _curve(run: Run, splits: Sequence[str]) -> Measurement | None:
    """The run's loss and score by epoch; a value that was not finite is NaN. None without rows that can be read."""
    try:
        rows = MetricsLog.read(run.folder / "metrics.jsonl")
    except (OSError, ValueError):
        return None
    arrays = {}
    for split in splits:
        own = [row for row in rows if row.get("split") == split]
        if own:
            for name in ("epoch", "loss", run.score):
                arrays[f"{split}/{name}"] = np.array([row.get(name) for row in own], dtype=float)
    return Measurement(arrays, {}, {"score": run.score}) if arrays else None
