"""Learning curves of the arms over one another, from their runs' metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from runner.figures import draw
from runner.probes.learning_curves import learning_curves
from runner.results.arms import Arm
from runner.results.measurement import Measurement
from runner.results.runs import Run

MOST_WITH_TRAINING = 3  # arms; of more the curves of both splits cannot be told apart


def curves_figure(arms: Sequence[Arm]) -> Figure | None:
    """Loss and score by epoch, an arm a line and its seeds a band; None where no run has come through two epochs.

    Of more than three arms the validation split alone is drawn.
    """
    splits = ("train", "validation") if len(arms) <= MOST_WITH_TRAINING else ("validation",)
    found = [(arm.label, [curve for run in arm.runs if (curve := _curve(run, splits))]) for arm in arms]
    found = [(label, curves) for label, curves in found if curves]
    longest = max(
        (len(epochs) for _, curves in found for curve in curves for epochs in curve.arrays.values()), default=0
    )
    return draw("learning_curves", found) if longest > 1 else None


def _curve(run: Run, splits: Sequence[str]) -> Measurement | None:
    """The run's loss and score by epoch; a value that was not finite is NaN. None without rows that can be read."""
    try:
        found = learning_curves(run.folder)
    except (OSError, ValueError):
        return None
    arrays = {name: values for name, values in found.arrays.items() if name.partition("/")[0] in splits}
    return Measurement(arrays, found.numbers, found.texts) if arrays else None
