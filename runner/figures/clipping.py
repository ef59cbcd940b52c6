"""The figure of the ratios that adaptive gradient clipping limits, by parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.figures import drawing
from runner.results.measurement import Measurement

MOST_NAMES = 24  # on an axis, so that they do not overlap
MEDIAN = 2  # the place of level 0.5 among the quantiles 0, 0.25, 0.5, 0.75 and 1


def figure(arms: drawing.Arms) -> Figure:
    """One arm: the quantiles of the ratio by parameter. Several: heat maps of parameter by arm.

    The arms of the heat maps, from left to right, are moments of training ("step 100") or settings. Their rows are the
    parameters of the first. Of several seeds shares are means and quantiles medians over the seeds.
    """
    return _quantiles(arms[0][1]) if len(arms) == 1 else _heat_maps(arms)


def _quantiles(seeds: Sequence[Measurement]) -> Figure:
    names, clip = seeds[0].texts["parameters"].split("\n"), seeds[0].numbers["clip"]
    ratio = np.median(drawing.over_seeds(seeds, "ratio"), axis=0)
    rows = np.arange(len(names))
    figure = Figure(figsize=(8, _height(len(names))), layout="constrained")
    axes = figure.add_subplot()
    ratio = np.where(ratio > 0, ratio, np.nan)  # a log scale has no 0
    edge = np.nanmin(ratio, initial=clip)
    ends = np.where(np.isnan(ratio) & (ratio[:, 4:] > 0), edge, ratio)  # a range that begins at 0 begins at the edge
    axes.hlines(rows, ends[:, 0], ends[:, 4], color=drawing.COLOURS[5], linewidth=1, label="smallest to largest")
    axes.hlines(rows, ends[:, 1], ends[:, 3], color=drawing.COLOURS[0], linewidth=3, label="middle half")
    axes.plot(ratio[:, MEDIAN], rows, color="black", marker="o", markersize=3, linestyle="none", label="median unit")
    axes.axvline(clip, color="black", linestyle="--", linewidth=1, label=f"clip = {clip:g}")
    _name_rows(axes, names)
    axes.set(xscale="log", ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("gradient norm / weight norm of a unit (no point: gradient 0)")
    share = np.mean(drawing.numbers_of(seeds, "share_above"))
    note = drawing.seeds_note([("", seeds)], "the mean share, and the median of each quantile")
    axes.set_title(f"Adaptive clipping: {share:.1%} of the units are above the clip{note}")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _heat_maps(arms: list[tuple[str, list[Measurement]]]) -> Figure:
    names = arms[0][1][0].texts["parameters"].split("\n")
    share = np.full((len(names), len(arms)), np.nan)
    median = np.full((len(names), len(arms)), np.nan)
    for column, (_, seeds) in enumerate(arms):
        shares = np.mean(drawing.over_seeds(seeds, "share_above"), axis=0)
        medians = np.median(drawing.over_seeds(seeds, "ratio"), axis=0)[:, MEDIAN]
        own = {name: row for row, name in enumerate(seeds[0].texts["parameters"].split("\n"))}
        for row, name in enumerate(names):
            if name in own:
                share[row, column], median[row, column] = shares[own[name]], medians[own[name]]
    with np.errstate(divide="ignore"):
        decades = np.where(median > 0, np.log10(median), np.nan)
    below = 0.06 * max(len(label) for label, _ in arms)  # the arms' names, aslant
    figure = Figure(figsize=(10, _height(len(names)) + below), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shares = left.imshow(share, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    ratios = right.imshow(decades, aspect="auto", cmap="cividis", interpolation="nearest")
    figure.colorbar(shares, ax=left, label="share of units above the clip")
    figure.colorbar(ratios, ax=right, label="log10(gradient norm / weight norm)")
    _name_rows(left, names)
    every = -(-len(arms) // 12)
    for axes in (left, right):
        axes.set_xticks(range(0, len(arms), every), [label for label, _ in arms][::every], rotation=45, ha="right")
    left.set_title("Units clipped")
    right.set_title("Median unit (blank: 0 or not there)")
    if note := drawing.seeds_note(arms, "the mean share, and the median of the median ratio"):
        figure.suptitle(note.strip(), fontsize=10)
    return figure


def _height(rows: int) -> float:
    return float(np.clip(0.22 * rows + 1.5, 3.5, 7.5))


def _name_rows(axes: Axes, names: list[str]) -> None:
    every = -(-len(names) // MOST_NAMES)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=8)
