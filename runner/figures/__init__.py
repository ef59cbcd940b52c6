"""Figures of what probes measured, one module a probe; drawing takes matplotlib and no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.figures.arms import Arms

NAMES = (
    "learning_curves",
    "gradient_histogram",
    "loss_landscape",
    "divergence_trace",
    "activation_statistics",
    "class_gradients",
    "gradient_terms",
    "signal_propagation",
    "clipping",
    "train_eval_discrepancy",
    "sharpness",
)

__all__ = ["NAMES", "draw"]


def draw(name: str, arms: Arms) -> Figure:
    """The figure of the probe called `name`: one measurement, or arms that are told apart by line, marker and label.

    An arm is a pair of a label and a measurement, or of a label and the measurements of several seeds. Of these a
    figure shows the median with a band from the smallest to the largest value, or a dot for each; where neither has a
    meaning, as in a heat map, the first seed, and its title says so.

    Raises ValueError for a name that is no probe's, without arms, and for an arm of seeds with different layers.
    """
    if name not in NAMES:
        raise ValueError(f"figure={name}: there is no probe of that name. Choose from {', '.join(NAMES)}.")
    module = importlib.import_module(f"runner.figures.{name}")  # on demand: matplotlib takes its time
    return module.figure(arms)
