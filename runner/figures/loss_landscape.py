"""The figure of the loss along the gradient."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing

TOP = 3e3


def figure(arms: drawing.Arms) -> Figure:
    """Relative loss against step size on log scales; a line for each batch, a style for each arm.

    Of several seeds all batches are pooled: the median, with a band from the smallest to the largest.
    """
    relative = [np.concatenate(drawing.over_seeds(seeds, "relative_loss")) for _, seeds in arms]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color="0.4", linewidth=0.8)
    for index, ((label, seeds), losses) in enumerate(zip(arms, relative, strict=True)):
        steps = seeds[0].arrays["step_size"]
        shown = np.minimum(losses, 10 * TOP)  # an infinity would end the line within the axes
        style = drawing.line_style(index) | {"markevery": (index * 2, max(1, len(steps) // 10)), "linewidth": 1.4}
        for place, lines in enumerate([shown] if len(seeds) > 1 else shown[:, None]):
            drawing.draw_band(axes, steps, lines, style=style, label=label if place == 0 else "")
    lowest = min(float(np.nanmin(losses, initial=1.0)) for losses in relative)
    axes.set(xscale="log", yscale="log", ylim=(max(lowest, 1e-3) * 0.8, TOP))
    ends = np.array([seeds[0].arrays["step_size"][[0, -1]] for _, seeds in arms])
    axes.set_xlim(ends[:, 0].min(), ends[:, 1].max())
    axes.set_xlabel("step size along the gradient (learning rate)")
    axes.set_ylabel("loss after the step / loss before")
    shown = "lines: medians over their batches, bands: smallest to largest"
    note = drawing.seeds_note(arms, shown)
    axes.set_title(f"Which gradient steps improve the loss (below 1){note}")
    axes.grid(alpha=0.3)
    drawing.legend_below(figure, axes)
    return figure
