"""The figure of how far the terms of a convolution's gradient cancel."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing


def figure(arms: drawing.Arms) -> Figure:
    """a / b of each layer, a line for each arm; of several seeds the median, with a band from smallest to largest."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axes = drawn.subplots()
    ratios = [np.array(drawing.over_seeds(seeds, "ratio")) for _, seeds in arms]
    for index, ((arm, _), ratio) in enumerate(zip(arms, ratios, strict=True)):
        places = range(ratio.shape[1])
        drawing.draw_band(axes, places, ratio, style=drawing.line_style(index) | {"markersize": 7}, label=arm)
        for place, value in zip(places, drawing.median_with_ends(ratio)[1], strict=True):
            axes.annotate(f"{value:.3g}", (place, value), xytext=(0, 7), textcoords="offset points", ha="center")
    names = [seeds[0].texts["layers"] for _, seeds in arms]
    axes.axhline(1, color="grey", lw=1)
    axes.annotate("all terms of one sign", (1, 1), (-4, 3), ("axes fraction", "data"), "offset points", ha="right")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2 * max(ratio.max() for ratio in ratios))
    axes.set_xticks(range(max(ratio.shape[1] for ratio in ratios)))
    if len(set(names)) == 1:  # the arms have the same layers
        axes.set_xticklabels(names[0].split("\n"))
    axes.margins(x=0.15)
    axes.set(xlabel="convolution", ylabel="sum of |terms| / |sum of terms|")
    axes.set_title(f"How far the terms of the weights' gradients cancel{drawing.seeds_note(arms)}")
    drawing.legend_below(drawn, axes)
    return drawn
