"""The figure of learning curves: loss and score by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.figures.arms import Arms, draw_band, labelled, legend_below, line_style, seeds_note
from runner.results.measurement import Measurement
from runner.results.metrics import SCORES

WIDE = 1e3  # the ratio of losses above which their axis is logarithmic
SPLITS = {"train": {"linestyle": "--", "fillstyle": "none"}, "validation": {"linestyle": "-", "fillstyle": "full"}}


def figure(arms: Arms) -> Figure:
    """Loss and score by epoch, training dashed and validation solid; one colour and marker an arm.

    Of several seeds the median of those that came so far, and a band from the smallest to the largest; a cross stands
    where a seed ended before the others. Losses of very different sizes have a logarithmic axis.
    """
    arms = labelled(arms)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (label, seeds) in enumerate(arms):
        for axes, name in ((left, "loss"), (right, _score(seeds))):
            for split, look in SPLITS.items():
                style = line_style(index) | look
                _draw_curve(axes, seeds, split, name, style=style, label=f"{label} {split}".lstrip())
    score = " or ".join(dict.fromkeys(SCORES.get(_score(seeds), "score") for _, seeds in arms))
    left.set(xlabel="epoch", ylabel="loss (nats for cross-entropy)", title="Loss")
    right.set(xlabel="epoch", ylabel=f"{score} (share of 1)", title=score[:1].upper() + score[1:])
    drawn = np.concatenate([[], *(line.get_ydata() for line in left.lines)])
    if drawn.size and np.nanmax(drawn) > WIDE * np.nanmin(drawn) > 0:
        left.set_yscale("log")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    shown = "lines: medians, bands: smallest to largest, crosses: a seed ended early"
    if note := seeds_note((len(seeds) for _, seeds in arms), shown):
        figure.suptitle(note.strip(), fontsize=10)
    legend_below(figure, left)
    return figure


def _score(seeds: Sequence[Measurement]) -> str:
    """The arm's score; a seed that ended in its first epoch has none."""
    return next(filter(None, (found.texts["score"] for found in seeds)), "")


def _draw_curve(
    axes: Axes, seeds: Sequence[Measurement], split: str, name: str, *, style: dict[str, object], label: str
) -> None:
    """One metric on one split; a seed has no value at an epoch that it did not come to."""
    curves = [
        dict(zip(found.arrays[f"{split}/epoch"], found.arrays[f"{split}/{name}"], strict=True))
        for found in seeds
        if f"{split}/{name}" in found.arrays
    ]
    if not curves:
        return
    epochs = np.array(sorted(set().union(*curves)))
    values = np.array([[curve.get(epoch, np.nan) for epoch in epochs] for curve in curves])
    every = max(1, len(epochs) // 12)
    draw_band(axes, epochs, values, style=style | {"markevery": every}, label=label)
    for curve in values:
        [finite] = np.isfinite(curve).nonzero()
        if len(curves) > 1 and len(finite) and finite[-1] < len(epochs) - 1:
            axes.plot(epochs[finite[-1]], curve[finite[-1]], color=style["color"], marker="x", markersize=9)
