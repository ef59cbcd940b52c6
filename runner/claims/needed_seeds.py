"""How many seeds will decide a claim, from the spread of those that are there: for `runner plan` of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from runner.claims.cells import Cell, Undecidable, seeds_in_order, sides
from runner.claims.claim import DIVERGED, Claim, parse_claim
from runner.claims.contrast import contrast
from runner.claims.sequential import FIRST_LOOK, SequentialMean, SequentialMedian
from runner.claims.verdict import UNDECIDABLE, estimated_mean, of_shares
from runner.claims.wording import VerdictTexts
from runner.results.measures import measured_probes
from runner.results.runs import Run

MOST = 1000  # seeds


@dataclass(frozen=True)
class Need:
    """`seeds` decide a claim, infinitely many if it stands on its threshold; NaN where nothing tells it yet.

    `supposed` says what that supposes; `there` is the number of seeds that judge already.
    """

    seeds: float
    there: int = 0
    supposed: str = ""


def needed_seeds(written: Mapping, number: int, runs: Sequence[Run]) -> Need:
    """The seeds that decide the `number`-th claim of a study.

    Of a mean: as many as show it with a power of 80 % at one look, if the compared value is the one that the claim
    expects, the middle of its range, or else the measured one. Of a median or a share of runs: as many as decide it if
    the seeds that are there repeat themselves.
    """
    claim = parse_claim(written, number, measured_probes(runs))
    texts = VerdictTexts(claim, is_sequential=True)
    try:
        if claim.measure == DIVERGED:
            both = sides(claim, runs)
            seeds = seeds_in_order([cell for side in both for cell in side])

            def decides(chosen: Sequence[int]) -> bool:
                repeated = [[_with_seeds(cell, chosen) for cell in side] for side in both]
                return of_shares(claim, *repeated, texts)["verdict"] != UNDECIDABLE

            return _repeated(seeds, decides)
        comparison = contrast(claim, runs, in_order=True)
        if len(comparison.values) < 2:
            return Need(math.nan, len(comparison.values))
        if claim.decided_by == "sign_test":
            return _repeated(list(comparison.values.values()), lambda chosen: _decides(claim, chosen))
        return _of_mean(claim, texts, estimated_mean(claim, comparison))
    except Undecidable:
        return Need(math.nan)


def _of_mean(claim: Claim, texts: VerdictTexts, pilot: SequentialMean) -> Need:
    to_line = math.log if claim.is_ratio else float
    bounds = [to_line(bound) for bound in claim.holds.bounds]
    if claim.expected is not None:
        value, source = to_line(claim.expected), "the expected"
    elif claim.holds.kind == "within":
        value, source = sum(bounds) / 2, "the middle of the range,"
    else:
        value, source = pilot.estimate, "the measured"
    shown = texts.distance(math.exp(value) if claim.is_ratio else value)
    distance = min(abs(value - bound) for bound in bounds)
    deviation = pilot.seed_error * math.sqrt(pilot.seeds)
    for seeds in range(FIRST_LOOK, MOST + 1):
        future = SequentialMean(value, seeds, deviation / math.sqrt(seeds), pilot.image_error)
        if future.smallest_effect()[0] <= distance:
            return Need(seeds, pilot.seeds, f"{source} {shown}")
    return Need(math.inf, pilot.seeds, f"{source} {shown}")


def _repeated(pilot: Sequence, decides: Callable[[Sequence], bool]) -> Need:
    """The first number of seeds that decides, were those of the pilot to come again and again."""
    if not pilot:
        return Need(math.nan)
    needed = (n for n in range(FIRST_LOOK, MOST // 5 + 1) if decides(list(islice(cycle(pilot), n))))
    return Need(next(needed, math.inf), len(pilot), "more seeds like these")


def _decides(claim: Claim, values: Sequence[float]) -> bool:
    """Whether the median of these values decides the claim."""
    ends = SequentialMedian(tuple(values)).interval()
    low, high = map(math.exp, ends) if claim.is_ratio else ends
    return (low in claim.holds and high in claim.holds) or claim.holds.excludes(low, high)


def _with_seeds(cell: Cell, seeds: Sequence[int]) -> Cell:
    return Cell(cell.settings, {number: cell.runs[seed] for number, seed in enumerate(seeds)})
