"""The look of the arms in a figure, which differ without colour too, and of the seeds of an arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from runner.results.measurement import Measurement

Measured = Measurement | Sequence[tuple[str, Measurement | Sequence[Measurement]]]
"""One measurement, or pairs of a label and the measurement of one or several seeds."""
Arms = Sequence[tuple[str, Sequence[Measurement]]]
"""The label of each arm and the measurements of its seeds."""

# Okabe and Ito's palette for colour-blind readers, darkest contrasts first; its yellow is too faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LEGEND_ROW = 0.21  # inches: 10 points and half as much space

LINES_AND_BANDS = "lines: medians, bands: smallest to largest"


def labelled(arms: Measured) -> Arms:
    """Each arm's label and the measurements of its seeds; a single measurement has an empty label.

    Raises ValueError without measurements.
    """
    if isinstance(arms, Measurement):
        return [("", [arms])]
    with_seeds = [(arm, [measured] if isinstance(measured, Measurement) else list(measured)) for arm, measured in arms]
    if not with_seeds or not all(seeds for _, seeds in with_seeds):
        raise ValueError("figure: no measurements to draw. Give one, or a list of (label, measurement).")
    return with_seeds


def first_seeds(arms: Arms) -> list[tuple[str, Measurement]]:
    """The first seed of each arm; the label says so if there are several."""
    return [(f"{arm} (seed 1 of {len(seeds)})".lstrip() if len(seeds) > 1 else arm, seeds[0]) for arm, seeds in arms]


def over_seeds(seeds: Sequence[Measurement], name: str) -> list[np.ndarray]:
    """The array `name` of each seed. Raises ValueError for seeds that measured different layers."""
    if any(measured.texts != seeds[0].texts for measured in seeds):
        raise ValueError(
            "figure: the seeds of an arm were measured at different layers. Give runs that differ in their seed alone."
        )
    return [measured.arrays[name] for measured in seeds]


def numbers_of(seeds: Sequence[Measurement], name: str) -> list[float]:
    """The number `name` of each seed."""
    return [measured.numbers[name] for measured in seeds]


def median_and_range(values: Sequence[float], spec: str) -> str:
    """The median of `values` in the format `spec`, with the range of several: "2.1 (1.9 to 2.4)"."""
    low, middle, high = (format(value, spec) for value in (np.min(values), np.median(values), np.max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def median_with_ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The smallest, the median and the largest finite value along the first axis; NaN without any."""
    finite = np.ma.masked_invalid(values)
    measured = (finite.min(axis=0), np.ma.median(finite, axis=0), finite.max(axis=0))
    low, middle, high = (np.ma.filled(np.ma.asarray(each, dtype=float), np.nan) for each in measured)
    return low, middle, high


def draw_band(axes: Axes, x: np.ndarray | range, values: np.ndarray, *, style: dict[str, Any], label: str = "") -> None:
    """The median of `values`, (seeds, len(x)), as a line, with a band from the smallest to the largest."""
    low, middle, high = median_with_ends(values)
    axes.plot(x, middle, label=label, **style)
    if len(values) > 1:
        fill, edge = to_rgba(style["color"], 0.18), to_rgba(style["color"], 0.6)
        # the edge has the line's dashes, which tell overlapping bands apart without colour
        dashes = {"linestyle": style["linestyle"], "linewidth": 0.7}
        axes.fill_between(x, low, high, facecolor=fill, edgecolor=edge, **dashes)


def seeds_note(arms: Arms, shown: str = LINES_AND_BANDS, *, of: str = "seeds") -> str:
    """A last line for a title that says what is shown of how many seeds; "" if no arm has several."""
    counts = sorted({len(seeds) for _, seeds in arms})
    if counts[-1] == 1:
        return ""
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"\n{number} {of}; {shown}"


def line_style(index: int) -> dict[str, Any]:
    """Colour, line style and marker of arm `index`, as keywords of `Axes.plot`."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINESTYLES[index % len(LINESTYLES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
    }


def layer_axis(axes: Axes) -> None:
    """A grid, and an x axis of whole numbers."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def set_y_scale(axes: Axes, values: Iterable[np.ndarray]) -> None:
    """Set a logarithmic y axis if the positive `values` span more than a factor of 20.

    Below that a logarithmic axis has hardly a labelled tick.
    """
    shown = np.concatenate([np.ravel(array) for array in values])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown) and shown.max() > 20 * shown.min():
        axes.set_yscale("log")


def legend_below(figure: Figure, axes: Axes) -> None:
    """A legend of the labels in `axes`, below all panels; none without labels.

    The figure grows by each further row of the legend, so that its panels keep their height.
    """
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # a character is about 0.085 inches wide at the legend's size, and a line's sample half an inch
        fitting = int(figure.get_figwidth() / (0.085 * max(map(len, labels)) + 0.6))
        rows = -(-len(labels) // min(4, max(fitting, 1)))
        columns = -(-len(labels) // rows)  # as equal in length as possible
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * (rows - 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
