"""The figure of activation statistics: channel means and deviations by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing
from runner.results.measurement import Measurement

PANELS = {"mean": "|mean| of a channel", "std": "standard deviation of a channel"}


def figure(arms: drawing.Arms) -> Figure:
    """|mean| and std of the channels against depth: the median over models, with a band from smallest to largest.

    The models of all seeds are pooled; the slope is the mean of theirs.
    """
    drawn = Figure(figsize=(9, 4), layout="constrained")
    panels = drawn.subplots(1, 2, sharex=True)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        values = [_of_models(seeds, name) for _, seeds in arms]
        for index, ((arm, seeds), of_models) in enumerate(zip(arms, values, strict=True)):
            depth = seeds[0].arrays["depth"]
            style = drawing.line_style(index) | ({"markersize": 0} if len(depth) > 40 else {})
            drawing.draw_band(axes, depth, of_models, style=style, label=f"{arm}: {_slope(seeds)}".removeprefix(": "))
        drawing.set_y_scale(axes, values)
        axes.set(xlabel="convolution, in the order of execution", ylabel=label)
        drawing.layer_axis(axes)
    note = drawing.seeds_note([("", of_models) for of_models in values], of="models")
    drawn.suptitle(f"Activations by depth: the convolutions' outputs, averaged over channels{note}")
    drawing.legend_below(drawn, panels[1])
    return drawn


def _of_models(seeds: Sequence[Measurement], name: str) -> np.ndarray:
    """The array `name` of all models of all seeds, (models, layers)."""
    return np.concatenate(drawing.over_seeds(seeds, name))


def _slope(seeds: Sequence[Measurement]) -> str:
    slopes = [measured.numbers["slope_log10_std"] for measured in seeds]
    slope = np.average(slopes, weights=[len(measured.arrays["std"]) for measured in seeds])
    return f"std {slope:+.3f} decades a layer"
