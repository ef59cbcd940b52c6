"""The figure of batch statistics against running statistics."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.figures import drawing
from runner.results.measurement import Measurement

BARS = (("batch", -0.2, drawing.COLOURS[0], ""), ("running", 0.2, drawing.COLOURS[6], "///"))
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2, "frameon": False}


def figure(arms: drawing.Arms) -> Figure:
    """The two losses of each arm side by side, and the distance of the means by layer.

    Of several seeds a bar is the median with a dot for each seed, and distances have a band.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_losses(left, arms)
    for index, (label, seeds) in enumerate(arms):
        distance = np.array([by_batch.mean(0) for by_batch in drawing.over_seeds(seeds, "distance")])
        if distance.shape[1]:
            drawing.draw_band(
                right, range(1, distance.shape[1] + 1), distance, style=drawing.line_style(index), label=label
            )
    right.set_ylim(bottom=0)
    drawing.layer_axis(right)
    right.set_xlabel("batch norm layer, in the order of execution")
    right.set_ylabel("rms distance / running std")
    right.set_title("Batch means from running means")
    if right.get_legend_handles_labels()[1]:
        right.legend(**BELOW)
    shown = "bars and lines: medians, dots: each seed, bands: smallest to largest"
    if note := drawing.seeds_note(arms, shown):
        figure.suptitle(note.strip(), fontsize=10)
    return figure


def _draw_losses(axes: Axes, arms: list[tuple[str, list[Measurement]]]) -> None:
    rows = np.arange(len(arms))
    for kind, offset, colour, hatch in BARS:
        losses = [drawing.numbers_of(seeds, f"loss_{kind}_statistics") for _, seeds in arms]
        bars = {"color": colour, "hatch": hatch, "edgecolor": "black", "label": f"{kind} statistics"}
        axes.barh(rows + offset, [np.median(values) for values in losses], 0.38, **bars)
        for row, values in enumerate(losses):
            if len(values) > 1:
                dots = {"marker": "o", "markersize": 5, "color": "white", "markeredgecolor": "black"}
                axes.plot(values, np.full(len(values), row + offset), linestyle="none", **dots)
    changed = [drawing.median_and_range(drawing.numbers_of(seeds, "changed_predictions"), ".1%") for _, seeds in arms]
    labels = [f"{arm}\n{share}\nof predictions change".lstrip() for (arm, _), share in zip(arms, changed, strict=True)]
    axes.set_yticks(rows, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean loss")
    axes.set_title("Loss of the same batches")
    axes.legend(**BELOW)
