"""The figure of signal propagation: how activations grow from block to block."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures.arms import Arms, draw_band, labelled, legend_below, line_style, over_seeds, seeds_note, set_y_scale

PANELS = {
    "avg_sq_mean": "average squared channel mean",
    "avg_var": "average channel variance",
    "res_avg_var": "variance of the residual branch",
}


def figure(arms: Arms) -> Figure:
    """The three measures against the block, an arm a line; crosses are what is expected of normalizer-free nets.

    Of several seeds the median, and a band from the smallest to the largest.
    """
    arms = labelled(arms)
    drawn = Figure(figsize=(12, 4), layout="constrained")
    panels = drawn.subplots(1, 3, sharex=True)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        measured = [np.array(over_seeds(seeds, name)) for _, seeds in arms]
        for index, ((arm, _), values) in enumerate(zip(arms, measured, strict=True)):
            draw_band(axes, range(values.shape[1]), values, style=line_style(index), label=arm or "measured")
        expected = [seeds[0].arrays.get(f"expected_{name}", np.full(1, np.nan)) for _, seeds in arms]
        distinct = {values.tobytes(): values for values in expected if np.isfinite(values).any()}
        for values in distinct.values():
            axes.plot(values, label="expected of a normalizer-free net", color="grey", ls="none", marker="x")
        set_y_scale(axes, [*measured, *expected])
        axes.set(xlabel="residual block (0: after the stem)", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    note = seeds_note(len(seeds) for _, seeds in arms)
    drawn.suptitle(f"Signal propagation: activations after the stem and each residual block{note}")
    legend_below(drawn, panels[1])
    return drawn
