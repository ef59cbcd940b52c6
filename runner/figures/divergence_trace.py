"""The figure of a divergence: activations by layer through gradient steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.figures import drawing
from runner.results.measurement import Measurement

MOST_LINES = 6


def figure(arms: drawing.Arms) -> Figure:
    """Channel means (above) and variances (below) by layer; a column an arm, a line a record, dark lines late ones.

    Of several seeds the lines are the first one's, and the title counts those that diverged.
    """
    verdicts = [_verdict(drawing.numbers_of(seeds, "diverged_after")) for _, seeds in arms]
    arms = drawing.first_seeds(arms)
    figure = Figure(figsize=(1.5 + 4.5 * len(arms), 6.5), layout="constrained")
    grid = figure.subplots(2, len(arms), squeeze=False, sharey="row")
    for column, ((label, measured), verdict) in enumerate(zip(arms, verdicts, strict=True)):
        for axes, name in zip(grid[:, column], ("mean", "variance"), strict=True):
            _draw_records(axes, measured, name)
            drawing.set_y_scale(axes, [measured.arrays[name] for _, measured in arms])
        grid[0][column].set_title(f"{label}\n{verdict}".lstrip(), fontsize=10)
        grid[1][column].set_xlabel("convolution, in the order of execution")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 3, "frameon": False}
        grid[1][column].legend(title="steps done (loss)", fontsize=8, **below)
    grid[0][0].set_ylabel("average |channel mean|")
    grid[1][0].set_ylabel("average channel variance")
    figure.suptitle("Activations by layer through gradient steps")
    return figure


def _verdict(diverged_after: Sequence[float]) -> str:
    """The step after which the loss was not finite, or the number of seeds in which it was not."""
    if len(diverged_after) > 1:
        return f"loss not finite in {sum(map(math.isfinite, diverged_after))} of {len(diverged_after)} seeds"
    [after] = diverged_after
    return f"loss not finite after {after:g} steps" if math.isfinite(after) else "loss stays finite"


def _draw_records(axes: Axes, measured: Measurement, name: str) -> None:
    records = np.unique(np.linspace(0, len(measured.arrays["progress"]) - 1, MOST_LINES).round().astype(int))
    values = measured.arrays[name]
    layers = np.arange(1, values.shape[1] + 1)
    for index, record in enumerate(records):
        shade = str(0.75 * (1 - index / max(1, len(records) - 1)))
        done, loss = measured.arrays["progress"][record], measured.arrays["loss"][record]
        shown = np.where(np.isfinite(values[record]), values[record], np.nan)
        style = drawing.line_style(index) | {"color": shade, "markevery": max(1, len(layers) // 10)}
        axes.plot(layers, shown, **style, label=f"{done:.3g} ({loss:.3g})")
    drawing.layer_axis(axes)
