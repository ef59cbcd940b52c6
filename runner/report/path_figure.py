"""How a study was decided: each claim's estimate and interval as seeds came in."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from runner.claims.claim import Claim, parse_claim
from runner.claims.verdict import HOLDS, HOLDS_NOT, UNDECIDABLE, Verdict
from runner.claims.wording import VerdictTexts
from runner.results.measures import label

PATHS = (
    "Estimates with the intervals that hold at all looks together, by the number of seeds that judge; where the claim "
    "holds is shaded, and the line stands at the look that decided."
)
COLUMNS = 3
COLOURS = {HOLDS: "tab:green", HOLDS_NOT: "tab:red", UNDECIDABLE: "tab:orange"}
TITLE_WIDTH = 42  # characters


def path_figure(verdicts: Sequence[Verdict], claims: Sequence[Mapping]) -> Figure | None:
    """A small plot for each claim with a look; None without one."""
    shown = [
        (number, verdict, parse_claim(claim, number))
        for number, (verdict, claim) in enumerate(zip(verdicts, claims, strict=True), start=1)
        if verdict.looks
    ]
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(4.2, 3.5 * columns), 2.9 * rows), layout="constrained")
    places = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (number, verdict, claim) in zip(places, shown, strict=False):
        _draw(axes, verdict, claim)
        axes.set_title(_title(f"{number}. {verdict.claim}"), fontsize=8.5, loc="left")
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, verdict: Verdict, claim: Claim) -> None:
    texts = VerdictTexts(claim)
    looks, colour = verdict.looks, COLOURS[verdict.verdict]
    seeds = np.array([look.seeds for look in looks])
    values = np.array([(look.estimate, look.low, look.high) for look in looks]).T * texts.scale
    bounds = [bound * texts.scale for bound in claim.holds.bounds]
    ends = [value for value in (*values.ravel(), *bounds) if math.isfinite(value)]
    is_log = claim.is_ratio and min(ends) > 0
    center = np.where(np.isfinite(values[0]), values[0], np.nan)
    if is_log:
        axes.set_yscale("log")
        low, high = min(ends) / 1.2, max(ends) * 1.2
    else:
        margin = 0.08 * (max(ends) - min(ends)) or 1.0
        low, high = min(ends) - margin, max(ends) + margin
    _, below, above = np.clip(values, low, high)
    axes.plot(seeds, center, "o-", color=colour, markersize=3.5, linewidth=1.2)
    axes.errorbar(seeds, center, [center - below, above - center], fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    side = {"above": (bounds[0], high), "below": (low, bounds[0])}.get(claim.holds.kind, (bounds[0], bounds[-1]))
    axes.axhspan(*side, color="0.92", zorder=0)
    if verdict.verdict != UNDECIDABLE:
        axes.axvline(verdict.seeds, color=colour, linestyle=":", linewidth=1)
    axes.set_ylim(low, high)
    axes.set_xlim(seeds[0] - 0.7, seeds[-1] + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("seeds", fontsize=8)
    axes.set_ylabel(_title(f"{label(claim.measure).partition(' (')[0]}{texts.unit and ','}{texts.unit}"), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _title(text: str) -> str:
    return "\n".join(textwrap.wrap(text, TITLE_WIDTH, max_lines=3, placeholder=" …"))
