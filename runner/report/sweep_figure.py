"""The figure of a sweep: lines, a heat map, or dots with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.figures.drawing import COLOURS, legend_below, line_style
from runner.report.arm_table import decimals, mean_text
from runner.results.arms import Arm, Axis, Spread, best_arms, direction, label, rank
from runner.results.measures import scale

MOST_LINES, MOST_DOTS = len(COLOURS), 40
EQUAL_CONTRAST = 0.46  # the brightness of a background on which black and white letters are equally readable
WIDEST_SHIFT = 0.08  # of the step between two values on the x axis


def sweep_figure(axes: Sequence[Axis], arms: Sequence[Arm], name: str, title: str, *, in_order: bool = False) -> Figure:
    """The measure `name`, titled `title`, over the arms: means, 95 % t intervals, and a faint dot for each seed.

    One numeric axis gives a line, or a line for each category of the other axes; exactly two numeric axes give a heat
    map; other axes give rows of dots, the best at the top unless `in_order`. Of too many lines or rows the best are
    drawn, and the title says so.
    """
    numeric = [axis for axis in axes if axis.numbers]
    if len(numeric) == len(axes) == 2:
        return _heat_map(axes[0], axes[1], arms, name, title)
    if numeric:
        x = max(numeric, key=lambda axis: len(axis.numbers))
        return _lines(x, [axis for axis in axes if axis is not x], arms, name, title)
    return _dots(arms, name, title, in_order=in_order)


def figure_caption(axes: Sequence[Axis], arms: Sequence[Arm], name: str) -> str:
    """A caption that explains the marks of the figure."""
    several = any(not math.isnan(arm.spread(name).deviation) for arm in arms)
    if len(axes) == 2 and all(axis.numbers for axis in axes):
        return "Each cell: the mean over the seeds" + (", with their standard deviation." if several else ".")
    most = max(len(arm.spread(name).values) for arm in arms)
    bars = " with 95 % t intervals (of two seeds: their range)" if most > 2 else " with the range of the two"
    notes = ["Means over the seeds" + (f"{bars}; faint dots are single seeds." if several else ".")]
    counts = [(len(arm.spread(name).values), arm.seeds) for arm in arms]
    if any(0 < count < seeds for count, seeds in counts):
        notes.append("Where some seeds have no value, as those that diverged, the figure says how many have.")
    if any(count == 0 for count, _ in counts):
        notes.append("A cross: no run of the arm has a value.")
    return " ".join(notes)


def _lines(x: Axis, others: Sequence[Axis], arms: Sequence[Arm], name: str, title: str) -> Figure:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[str, ...], list[Arm]] = {}
    for arm in arms:
        lines.setdefault(tuple(arm.settings[axis.key] for axis in others), []).append(arm)
    shown = _best_lines(lines, name)
    numbers = list(x.numbers.values())
    for index, (_, members) in enumerate(shown):
        style, text = line_style(index), label(members[0].settings, others)
        points = [arm for arm in members if arm.settings[x.key] in x.numbers]
        if points:
            shift = WIDEST_SHIFT * (2 * index / (len(shown) - 1) - 1) if len(shown) > 1 else 0.0
            places = _shifted([x.numbers[arm.settings[x.key]] for arm in points], numbers, shift)
            _draw_line(axes, places, points, name, style, text)
        for arm in members:
            if arm not in points and not math.isnan(arm.spread(name).mean):
                without = f"{x.name}: {x.title(arm.settings[x.key])}" if points or not text else text
                axes.axhline(arm.spread(name).mean * scale(name), **style | {"marker": ""}, label=without)
    if _is_geometric(numbers):
        axes.set_xscale("log")
    axes.set_xticks(numbers, [x.title(text) for text in x.numbers])
    axes.minorticks_off()
    axes.set(xlabel=x.key, ylabel=title)
    axes.set_title(_few(len(shown), len(lines), "lines"), fontsize=10)
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure


def _draw_line(axes: Axes, places: np.ndarray, arms: Sequence[Arm], name: str, style: dict, text: str) -> None:
    """The means as a line, with intervals and seeds."""
    spreads = [arm.spread(name) for arm in arms]
    factor = scale(name)
    means = np.array([spread.mean for spread in spreads]) * factor
    axes.plot(places, means, **style, label=text)
    bars = np.array([_bar(spread) for spread in spreads]).T * factor
    known = np.isfinite(bars).all(axis=0)
    axes.errorbar(
        places[known], means[known], yerr=bars[:, known], fmt="none", ecolor=style["color"], capsize=3, elinewidth=1
    )
    for place, arm, spread in zip(places, arms, spreads, strict=True):
        if len(spread.values) > 1:
            dots = np.array(spread.values) * factor
            axes.plot([place] * len(dots), dots, "o", color=style["color"], alpha=0.3, markersize=4, markeredgewidth=0)
        if 0 < len(spread.values) < arm.seeds:
            at, count = (place, spread.mean * factor), f"{len(spread.values)} of {arm.seeds}"
            axes.annotate(count, at, (5, 5), textcoords="offset points", fontsize=8, color=style["color"])
        if math.isnan(spread.mean):
            axes.plot(place, 0.03, "x", color=style["color"], markersize=9, transform=axes.get_xaxis_transform())


def _best_lines(lines: dict, name: str) -> list[tuple[tuple[str, ...], list[Arm]]]:
    """All lines; of too many, those whose best arm is best, in their given order."""
    leaders = {id(best_arms(members, name, 1)[0]): key for key, members in lines.items()}
    arms = [arm for members in lines.values() for arm in members if id(arm) in leaders]
    chosen = {leaders[id(arm)] for arm in best_arms(arms, name, MOST_LINES)}
    return [(key, members) for key, members in lines.items() if key in chosen]


def _bar(spread: Spread) -> tuple[float, float]:
    """The lengths of the bar below and above the mean: the t interval; for two seeds, their range."""
    if math.isnan(spread.deviation):
        return math.nan, math.nan
    low, high = (spread.low, spread.high) if len(spread.values) > 2 else (min(spread.values), max(spread.values))
    return spread.mean - low, high - spread.mean


def _shifted(x: Sequence[float], numbers: Sequence[float], shift: float) -> np.ndarray:
    """`x` moved by a share of the axis' typical step, so that bars of several lines stand side by side."""
    low, high, steps = min(numbers), max(numbers), len(numbers) - 1
    if _is_geometric(numbers):
        return np.asarray(x) * (high / low) ** (shift / steps)
    return np.asarray(x) + shift * (high - low) / steps


def _is_geometric(numbers: Sequence[float]) -> bool:
    """Whether ratios vary less than differences, as in 16, 32, 64; for two numbers, a factor of 4."""
    ordered = np.sort(np.asarray(numbers, dtype=float))
    if ordered[0] <= 0:
        return False
    if len(ordered) == 2:
        return bool(ordered[1] >= 4 * ordered[0])
    steps, ratios = np.diff(ordered), np.diff(np.log(ordered))
    return bool(np.std(ratios) / np.mean(ratios) < np.std(steps) / np.mean(steps))


def _heat_map(x: Axis, y: Axis, arms: Sequence[Arm], name: str, title: str) -> Figure:
    """The numbers of `y` upwards, those of `x` to the right; the axis with more values lies."""
    if len(y.values) > len(x.values):
        x, y = y, x
    figure = Figure(figsize=(max(6.0, 2.6 + 1.05 * len(x.values)), 1.8 + 0.62 * len(y.values)), layout="constrained")
    axes = figure.subplots()
    cells = {(arm.settings[y.key], arm.settings[x.key]): arm for arm in arms}
    grid = np.full((len(y.values), len(x.values)), np.nan)
    for (row, column), arm in cells.items():
        grid[y.values.index(row), x.values.index(column)] = arm.spread(name).mean * scale(name)
    finite = np.ma.masked_invalid(grid)
    colours = "cividis" if direction(name) >= 0 else "cividis_r"
    image = axes.imshow(finite, cmap=colours, origin="lower", aspect="auto")
    axes.set_facecolor("#e8e8e8")
    places = decimals(arms, name)
    for (row, column), arm in cells.items():
        at = (x.values.index(column), y.values.index(row))
        value = grid[at[1], at[0]]
        dark = math.isfinite(value) and _luminance(image.cmap(image.norm(value))) < EQUAL_CONTRAST
        spread = arm.spread(name)
        text = mean_text(spread, name, places, between="\n") if spread.values else _missing(arm)
        axes.text(*at, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(x.values)), [x.title(value) for value in x.values])
    axes.set_yticks(range(len(y.values)), [y.title(value) for value in y.values])
    axes.set(xlabel=x.key, ylabel=y.key)
    if finite.count():
        figure.colorbar(image, ax=axes, label=title)
    return figure


def _missing(arm: Arm) -> str:
    """The reason why an arm has no value: the common status of its runs, if they have one."""
    statuses = {run.status for run in arm.runs}
    return statuses.pop() if len(statuses) == 1 and statuses != {"completed"} else "no value"


def _luminance(colour: Sequence[float]) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def _dots(arms: Sequence[Arm], name: str, title: str, *, in_order: bool) -> Figure:
    shown = best_arms(arms, name, MOST_DOTS)
    if not in_order and direction(name):
        shown = sorted(shown, key=lambda arm: rank(arm, name))
    longest = max(len(_cut(arm.label)) for arm in shown)
    # the labels stand left of the axes, about 0.09 inches a character, and never take more than half of the figure
    width = min(7.0 + max(0.0, 0.09 * (longest - 24)), 11.0)
    figure = Figure(figsize=(width, 1.3 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    factor = scale(name)
    colour = line_style(0)["color"]
    for row, arm in enumerate(shown):
        spread = arm.spread(name)
        if math.isnan(spread.mean):
            axes.plot(0.02, row, "x", color=line_style(1)["color"], markersize=8, transform=axes.get_yaxis_transform())
            axes.text(0.045, row, _missing(arm), va="center", fontsize=9, transform=axes.get_yaxis_transform())
            continue
        if len(spread.values) > 1:
            axes.plot(np.array(spread.values) * factor, [row] * len(spread.values), "o", color=colour, alpha=0.3, mew=0)
        if not math.isnan(spread.deviation):
            ends = np.array(_bar(spread)).reshape(2, 1) * factor
            axes.errorbar(spread.mean * factor, row, xerr=ends, fmt="none", ecolor=colour, capsize=4, elinewidth=1.5)
        axes.plot(spread.mean * factor, row, "D", color=colour, markersize=6)
    axes.set_yticks(range(len(shown)), [_cut(arm.label) + _of(arm, name) for arm in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(title)
    axes.set_title(_few(len(shown), len(arms), "arms"), fontsize=10)
    axes.grid(alpha=0.3)
    return figure


def _of(arm: Arm, name: str) -> str:
    """How many of the arm's seeds have a value, if not all have."""
    count = len(arm.spread(name).values)
    return f"\n({count} of {arm.seeds} seeds)" if 0 < count < arm.seeds else ""


def _cut(text: str, longest: int = 56) -> str:
    return text if len(text) <= longest else "…" + text[1 - longest :]


def _few(shown: int, total: int, things: str) -> str:
    return f"the {shown} best of {total} {things}" if shown < total else ""
