"""The figure of the largest rate that trains."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing

CUT_OFF = 5.0  # times the smallest loss


def figure(arms: drawing.Arms) -> Figure:
    """The loss after the steps by rate, a dot a trial; a vertical line at the largest rate that trains, its median."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    losses = np.concatenate([measured.arrays["last_loss"] for _, seeds in arms for measured in seeds])
    finite = losses[np.isfinite(losses)]
    top = CUT_OFF * finite.min() if len(finite) else 1.0
    for index, (label, seeds) in enumerate(arms):
        style = drawing.line_style(index)
        rates = drawing.numbers_of(seeds, "rate")
        name = f"{label}: {drawing.median_and_range(rates, '.3g')}".removeprefix(": ")
        for measured in seeds:
            order = np.argsort(measured.arrays["log10_rate"])
            x, y = 10 ** measured.arrays["log10_rate"][order], np.minimum(measured.arrays["last_loss"][order], top)
            axes.plot(x, y, **style | {"linestyle": "", "label": None})
        axes.axvline(float(np.median(rates)), color=style["color"], linestyle=style["linestyle"], label=name)
    axes.set(xscale="log", yscale="log", xlabel="learning rate")
    axes.set_ylabel("mean loss of the last quarter of the steps\n(on the grey line: larger, or not finite)")
    axes.axhline(top, color="0.5", linewidth=1.0)
    note = drawing.seeds_note(arms, "a dot each trial, lines: medians, with their range")
    axes.set_title(f"The largest learning rate that trains{note}")
    axes.grid(alpha=0.3)
    drawing.legend_below(figure, axes)
    return figure
