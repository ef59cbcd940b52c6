"""The figure of a layer's gradient: its histogram, and the tails of all arms."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing
from runner.results.measurement import Measurement


def figure(arms: drawing.Arms) -> Figure:
    """A histogram with log counts for each arm, on its own axis, and beside them all tails on one.

    Of several seeds the histogram is the first one's; each has a tail, and the numbers are medians with their range.
    """
    firsts = drawing.first_seeds(arms)
    drawn = Figure(figsize=(3.6 * (len(arms) + 1), 4.2), layout="constrained")
    *panels, tails = drawn.subplots(1, len(arms) + 1)
    highest = max(measured.arrays["counts"].max() for _, measured in firsts)
    for index, (axes, (arm, first), (_, seeds)) in enumerate(zip(panels, firsts, arms, strict=True)):
        colour = drawing.line_style(index)["color"]
        axes.stairs(first.arrays["counts"], first.arrays["edges"], fill=True, color=colour)
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.5, 2 * highest)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel="gradient dL/dw", ylabel="number of weights")
        kurtosis = drawing.median_and_range(drawing.numbers_of(seeds, "excess_kurtosis"), ".3g")
        tail = drawing.median_and_range(drawing.numbers_of(seeds, "tail_index"), ".3g")
        axes.set_title(f"{arm}\nexcess kurtosis {kurtosis}\ntail index {tail}".lstrip(), fontsize=9)
    for index, (arm, seeds) in enumerate(arms):
        for place, measured in enumerate(seeds):
            style = drawing.line_style(index) | {"markersize": 0, "label": arm if place == 0 else None}
            tails.plot(measured.arrays["tail_value"], measured.arrays["tail_probability"], **style)
    usual = np.concatenate([_above_the_smallest(measured) for _, seeds in arms for measured in seeds])
    tails.set_yscale("log")
    if len(usual):  # some gradient is not 0
        tails.set_xscale("log")
        tails.set_xlim(left=usual.min())
    tails.set(xlabel="x", ylabel="share of weights with |dL/dw| > x")
    tails.set_title("tails, a line a seed" if any(len(seeds) > 1 for _, seeds in arms) else "tails", fontsize=9)
    tails.grid(alpha=0.3)
    if len(arms) > 1:
        tails.legend(fontsize=8, loc="lower left")
    layers = dict.fromkeys(measured.texts["layer"] for _, measured in firsts)
    drawn.suptitle(f"Gradient of the weight of {', '.join(layers)}: counts and tails")
    return drawn


def _above_the_smallest(measured: Measurement) -> np.ndarray:
    """The values that at most 90 % of the weights exceed; below them the tail is flat over decades."""
    values = measured.arrays["tail_value"][measured.arrays["tail_probability"] <= 0.9]
    return values[values > 0]
