"""The figure of the growth of activations from block to block."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing

PANELS = {
    "avg_sq_mean": "average squared channel mean",
    "avg_var": "average channel variance",
    "res_avg_var": "variance of the residual branch",
}


def figure(arms: drawing.Arms) -> Figure:
    """The three measures by block, a line for each arm; crosses are the expectation for normalizer-free nets.

    Of several seeds the median, with a band from smallest to largest.
    """
    drawn = Figure(figsize=(12, 4), layout="constrained")
    panels = drawn.subplots(1, 3, sharex=True)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        measured = [np.array(drawing.over_seeds(seeds, name)) for _, seeds in arms]
        for index, ((arm, _), values) in enumerate(zip(arms, measured, strict=True)):
            drawing.draw_band(
                axes, range(values.shape[1]), values, style=drawing.line_style(index), label=arm or "measured"
            )
        expected = [seeds[0].arrays.get(f"expected_{name}", np.full(1, np.nan)) for _, seeds in arms]
        distinct = {values.tobytes(): values for values in expected if np.isfinite(values).any()}
        for values in distinct.values():
            axes.plot(values, label="expected of a normalizer-free net", color="grey", ls="none", marker="x")
        drawing.set_y_scale(axes, [*measured, *expected])
        axes.set(xlabel="residual block (0: after the stem)", ylabel=label)
        drawing.layer_axis(axes)
    note = drawing.seeds_note(arms)
    drawn.suptitle(f"Signal propagation: activations after the stem and each residual block{note}")
    drawing.legend_below(drawn, panels[1])
    return drawn
