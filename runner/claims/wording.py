"""The text of a verdict: numbers in the units of their measure, and the rule that decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.claims import sequential
from runner.claims.claim import DIVERGED, Claim
from runner.claims.contrast import Contrast
from runner.results.measures import is_test, label, scale, unit
from runner.results.number_text import format_significant
from runner.results.proportions import Share
from runner.results.statistics import LEVEL

if TYPE_CHECKING:
    import numpy as np

FEWEST_FOR_MEDIAN = 6  # seeds of which the smallest and the largest value are a 95 % interval
TRANSFORM_UNITS = {"log10": "decades", "log2": "doublings"}
MOST_CHOSEN = 6  # best values that the rule lists
MOST_DECIMALS = 6


class VerdictTexts:
    """The texts of a claim's verdict. Differences of percentages are in percentage points."""

    def __init__(self, claim: Claim, *, is_sequential: bool = False) -> None:
        self.claim, self.is_sequential = claim, is_sequential
        compares = bool(claim.minus) or claim.slope_over is not None or claim.minus_measure is not None
        self.is_difference = compares and not claim.is_ratio
        self.scale = 1.0 if claim.transform or claim.is_ratio else scale(claim.measure)
        self.unit = _spaced(self._unit()) if not claim.is_ratio else ""

    def interval(self, estimate: float, low: float, high: float, seeds: int, images: np.ndarray | None) -> str:
        """`+1.20 [+0.80, +1.60] percentage points, 10 seeds x 10,000 images`."""
        center, low, high = self._numbers(estimate, low, high)
        crossed = "" if images is None else f" x {images.shape[1]:,} images"
        return f"{center} [{low}, {high}]{self.unit}, {_counted(seeds, 'seed')}{crossed}"

    def point(self, value: float) -> str:
        """`+1.20 percentage points`, of which no interval is known."""
        return f"{self._numbers(value)[0]}{self.unit}"

    def shares(self, plus: Share, minus: Share | None, low: float, high: float, p: float) -> str:
        """`3 of 4 runs against 0 of 4: +75 [+19, +95] %, p = 0.14`."""
        ends = f"[{100 * low:{'+' if minus else ''}.0f}, {100 * high:{'+' if minus else ''}.0f}]"
        if minus is None:
            return f"{plus.count} of {plus.number} runs diverged: {100 * plus.estimate:.0f} {ends} %"
        difference = 100 * (plus.estimate - minus.estimate)
        runs = f"{plus.count} of {plus.number} runs diverged against {minus.count} of {minus.number}"
        return f"{runs}: {difference:+.0f} {ends} percentage points, p = {format_significant(p, 2)}"

    def distance(self, effect: float, low: float = math.nan, high: float = math.nan) -> str:
        """A distance from the threshold, a factor for a ratio, with the interval of what the study knows of it."""
        digits, natural = (3, 1.0) if self.claim.is_ratio else (2, self.scale)
        number, *ends = (format_significant(value * natural, digits) for value in (effect, low, high))
        points = self.unit.replace(" %", " percentage points")
        text = f"a factor of {number}" if self.claim.is_ratio else f"{number}{points}"
        return text if math.isnan(low) or ends[0] == ends[1] else f"{text} ({ends[0]} to {ends[1]})"

    def why(self, seeds: int, effects: Sequence[float]) -> str:
        """The reason why an interval does not decide the claim."""
        where = "reaches over an end of the range" if self.claim.holds.kind == "within" else "lies on both sides"
        return (
            f"The interval {where}. The smallest effect that {seeds} seeds can show (power 80 %) is "
            f"{self.distance(*effects)} from the threshold."
        )

    def why_median(self, seeds: int) -> str:
        """The reason why the interval of a median does not decide the claim."""
        fewest = sequential.FEWEST_FOR_MEDIAN if self.is_sequential else FEWEST_FOR_MEDIAN
        if seeds < fewest:
            return f"A median of {seeds} seeds has no 95 % interval: it takes {fewest}."
        return "The interval of the median reaches over the threshold."

    def why_chance(self, p: float) -> str:
        """The reason why a choice is none."""
        keys, test = ", ".join(self.claim.best_over), "e-value" if self.is_sequential else "permutation test"
        return f"Scores differ by {keys} no more than by chance ({test}, p = {p:.2f}): no value is best."

    def why_no_look(self, seeds: int) -> str:
        """The reason why a sequential study has not been judged yet."""
        return f"The first look is at {sequential.FIRST_LOOK} seeds that judge, and there are {seeds}."

    def why_fisher(self, plus: int, minus: int) -> str:
        """The reason why Fisher's test does not decide the claim."""
        test = "e-value" if self.is_sequential else "Fisher's exact test"
        return f"The {test} of {plus} and {minus} runs does not tell the shares apart."

    def rule(self, contrast: Contrast | None, look: int = 0) -> str:
        """One sentence: where the compared value must lie for the claim to hold, and how it was computed.

        `look` is the number of seeds at the look of a sequential study.
        """
        claim, number = self.claim, f"{len(contrast.values)} " if contrast else ""
        if claim.measure == DIVERGED:
            return self._rule_of_shares(look)
        is_crossed = contrast is not None and contrast.images is not None
        images = " and the test images" if is_crossed else _where(claim.measure)
        seeds = f"{number}{'paired ' if claim.minus else ''}seeds{images}"
        compared = claim.combine if claim.minus else "value"
        if claim.slope_over is not None:
            compared = f"{compared} of slopes" if claim.minus else "slope"
        must = f"{compared} must lie {self._threshold()}" + "".join(f"; {clause}" for clause in self._clauses(contrast))
        if claim.decided_by == "sign_test":
            return f"The {self._level(look)} over {seeds} (order statistics) of the median {must}."
        freedom = len(contrast.values) - 1 if contrast else 0
        how = f"t, {_counted(freedom, 'degree')} of freedom" if freedom else "t, n - 1 degrees of freedom"
        if self.is_sequential and look >= sequential.FIRST_LOOK:
            level = sequential.SequentialMean(0.0, look, 1.0).nominal_level(LEVEL)
            how = f"as wide as a t interval of {100 * (1 - level):.4g} %"
        return f"The {self._level(look)} over {seeds} ({how}) of the {'geometric ' * claim.is_ratio}mean {must}."

    def _level(self, look: int) -> str:
        """The interval's level: of one look, or of all together."""
        if not self.is_sequential:
            return "95 % interval"
        return f"95 % interval that holds at all looks together{_numbered(look)}"

    def _rule_of_shares(self, look: int) -> str:
        where = self._threshold()
        equal = self.claim.minus and self.claim.holds.bounds == (0.0,)
        if self.is_sequential:
            if equal:
                test = f"a test of equal shares that holds at all looks together{_numbered(look)}"
                return f"The difference of the shares must lie {where} by {test}: an e-value of at least 20."
            what = "difference of the shares" if self.claim.minus else "share"
            return f"The {self._level(look)} of the {what} of diverged runs must lie {where}."
        if equal:
            return f"The difference of the shares must lie {where} by Fisher's exact test (two-sided, p <= 0.05)."
        what, name = ("difference of the shares", "Newcombe") if self.claim.minus else ("share", "Clopper-Pearson")
        return f"The 95 % interval ({name}) of the {what} of diverged runs must lie {where}."

    def _clauses(self, contrast: Contrast | None) -> list[str]:
        claim, clauses = self.claim, []
        if claim.minus_measure is not None:
            clauses.append(f"each value is {label(claim.measure)} less {label(claim.minus_measure)}")
        if claim.factor != 1:
            clauses.append(f"the {'difference' if claim.minus else 'value'} is multiplied by {claim.factor:g}")
        if claim.best_over:
            how = "seed by seed" if claim.chosen_seed_by_seed else "in the mean over the pilot's seeds"
            by = label(claim.chosen_by).removesuffix(" (%)")
            clauses.append(f"each arm stands at its best {', '.join(claim.best_over)} by {by} {how}")
        if contrast is None:
            return clauses
        if contrast.chosen:
            more = f" and {len(contrast.chosen) - MOST_CHOSEN} more" if len(contrast.chosen) > MOST_CHOSEN else ""
            clauses.append(f"chosen were {', '.join(contrast.chosen[:MOST_CHOSEN])}{more}")
        if contrast.pilot:
            numbers = ", ".join(map(str, contrast.pilot))
            clauses.append(f"seed{'s' * (len(contrast.pilot) > 1)} {numbers} chose, the others judge")
        if contrast.diverged:
            clauses.append(f"left out: {_counted(contrast.diverged, 'diverged run')}, with the runs of the same seeds")
        if contrast.left_out:
            numbers = ", ".join(map(str, contrast.left_out))
            clauses.append(f"left out: seed{'s' * (len(contrast.left_out) > 1)} {numbers}, which not every arm has")
        return clauses

    def _threshold(self) -> str:
        kind = self.claim.holds.kind
        bounds = [f"{bound * self.scale:.6g}" for bound in self.claim.holds.bounds]
        unit = self.unit
        if bounds in (["1"], ["-1"]):
            unit = unit.replace("points", "point")
        return f"{'between' if kind == 'within' else kind} {' and '.join(bounds)}{unit}"

    def _unit(self) -> str:
        claim = self.claim
        if claim.transform:
            word = TRANSFORM_UNITS[claim.transform] if self.is_difference else f"({claim.transform})"
        else:
            word = "percentage points" if self.is_difference and self.scale == 100 else unit(claim.measure)
        if claim.slope_over is None:
            return word
        return f"{word} a {'doubling' if claim.slope_scale == 'log2' else 'unit'} of {claim.slope_over}".strip()

    def _numbers(self, *values: float) -> list[str]:
        """Numbers with as many decimals as give half their range two significant figures.

        More decimals keep a number from being rounded onto a bound of the claim or past it; each number of a ratio has
        at least two significant figures.
        """
        values = [value * self.scale for value in values]
        half = (max(values) - min(values)) / 2  # NaN where one seed has no range
        sign = "+" if self.is_difference else ""
        decimals = 1 - math.floor(math.log10(half)) if 0 < half < math.inf else None
        if decimals is None or decimals > MOST_DECIMALS or max(map(abs, values)) >= 1e7:
            return [f"{value:{sign if value else ''}.4g}" for value in values]
        decimals = max(decimals, 0)
        bounds = [bound * self.scale for bound in self.claim.holds.bounds]
        while decimals < MOST_DECIMALS and any(
            _side(value, bounds) != _side(round(value, decimals), bounds) for value in values
        ):
            decimals += 1
        least = [
            decimals if value <= 0 or not self.claim.is_ratio else 1 - math.floor(math.log10(value)) for value in values
        ]
        return [f"{value:{sign}.{max(decimals, own)}f}" for value, own in zip(values, least, strict=True)]


def _side(value: float, bounds: Sequence[float]) -> list[tuple[bool, bool]]:
    return [(value < bound, value > bound) for bound in bounds]


def _numbered(look: int) -> str:
    """The number of the look that has so many seeds; nothing before the first."""
    number = look - sequential.FIRST_LOOK + 1
    return f" (look {number})" if number > 0 else ""


def _where(measure: str) -> str:
    """The images that all runs share: the seeds are no sample of test sets."""
    if is_test(measure):
        return " on one test set"
    return " on one validation set" if measure.startswith("validation/") else ""


def _spaced(word: str) -> str:
    return f" {word}" if word else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
