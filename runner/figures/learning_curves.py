"""The figure of learning curves: loss and score by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.figures import drawing
from runner.results.measurement import Measurement
from runner.results.metrics import SCORES

LOG_SCALE_RATIO = 1e3  # of losses; above it their axis is logarithmic
SPLITS = {"train": {"linestyle": "--", "fillstyle": "none"}, "validation": {"linestyle": "-", "fillstyle": "full"}}


def figure(arms: drawing.Arms) -> Figure:
    """Loss and score by epoch, training dashed and validation solid; a colour and marker for each arm.

    Of several seeds the median of those that reached the epoch, with a band from smallest to largest; a cross marks a
    seed that ended early. Losses of very different sizes have a logarithmic axis.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (label, seeds) in enumerate(arms):
        for axes, name in ((left, "loss"), (right, _score(seeds))):
            for split, look in SPLITS.items():
                style = drawing.line_style(index) | look
                _draw_curve(axes, seeds, split, name, style=style, label=f"{label} {split}".lstrip())
    score = " or ".join(dict.fromkeys(SCORES.get(_score(seeds), "score") for _, seeds in arms))
    left.set(xlabel="epoch", ylabel="loss (nats for cross-entropy)", title="Loss")
    right.set(xlabel="epoch", ylabel=f"{score} (share of 1)", title=score[:1].upper() + score[1:])
    drawn = np.concatenate([[], *(line.get_ydata() for line in left.lines)])
    if drawn.size and np.nanmax(drawn) > LOG_SCALE_RATIO * np.nanmin(drawn) > 0:
        left.set_yscale("log")
    for axes in (left, right):
        drawing.layer_axis(axes)
    shown = "lines: medians, bands: smallest to largest, crosses: a seed ended early"
    if note := drawing.seeds_note(arms, shown):
        figure.suptitle(note.strip(), fontsize=10)
    drawing.legend_below(figure, left)
    return figure


def _score(seeds: Sequence[Measurement]) -> str:
    """The arm's score; a seed that ended in its first epoch has none."""
    return next(filter(None, (measured.texts["score"] for measured in seeds)), "")


def _draw_curve(
    axes: Axes, seeds: Sequence[Measurement], split: str, name: str, *, style: dict[str, object], label: str
) -> None:
    """A metric on a split; a seed that ended before an epoch has no value there."""
    curves = [
        dict(zip(measured.arrays[f"{split}/epoch"], measured.arrays[f"{split}/{name}"], strict=True))
        for measured in seeds
        if f"{split}/{name}" in measured.arrays
    ]
    if not curves:
        return
    epochs = np.array(sorted(set().union(*curves)))
    values = np.array([[curve.get(epoch, np.nan) for epoch in epochs] for curve in curves])
    every = max(1, len(epochs) // 12)
    drawing.draw_band(axes, epochs, values, style=style | {"markevery": every}, label=label)
    for curve in values:
        [finite] = np.isfinite(curve).nonzero()
        if len(curves) > 1 and len(finite) and finite[-1] < len(epochs) - 1:
            axes.plot(epochs[finite[-1]], curve[finite[-1]], color=style["color"], marker="x", markersize=9)
