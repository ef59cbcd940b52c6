"""The text of a verdict: numbers in the units of their measure, and the rule that decided."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.claims.claim import Claim
from runner.claims.contrast import Contrast
from runner.results.measures import is_test, label, scale, unit
from runner.results.number_text import format_significant

TRANSFORM_UNITS = {"log10": "decades", "log2": "doublings"}
MOST_CHOSEN = 6  # best values that the rule lists
MOST_DECIMALS = 6


class VerdictTexts:
    """The texts of a claim's verdict. Differences of percentages are in percentage points."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.is_difference = (bool(claim.minus) or claim.slope_over is not None) and not claim.is_ratio
        self.scale = 1.0 if claim.transform or claim.is_ratio else scale(claim.measure)
        self.unit = _spaced(self._unit()) if not claim.is_ratio else ""

    def interval(self, estimate: float, low: float, high: float, seeds: int) -> str:
        """`+1.20 [+0.80, +1.60] percentage points, 10 seeds`."""
        center, low, high = self._numbers(estimate, low, high)
        return f"{center} [{low}, {high}]{self.unit}, {_counted(seeds, 'seed')}"

    def range(self, estimate: float, low: float, high: float, seeds: int) -> str:
        """`+1.20 (from +0.80 to +1.60) percentage points, 10 seeds`."""
        center, low, high = self._numbers(estimate, low, high)
        spread = f" (from {low} to {high})" if seeds > 1 else ""
        return f"{center}{spread}{self.unit}, {_counted(seeds, 'seed')}"

    def distance(self, effect: float) -> str:
        """A distance from the threshold, a factor for a ratio."""
        if self.claim.is_ratio:
            return f"a factor of {format_significant(effect, 3)}"
        points = self.unit.replace(" %", " percentage points")
        return f"{format_significant(effect * self.scale, 2)}{points}"

    def why(self, seeds: int, effect: float) -> str:
        """The reason why an interval does not decide the claim."""
        where = "reaches over an end of the range" if self.claim.holds.kind == "within" else "lies on both sides"
        return (
            f"The interval {where}. The smallest effect that {seeds} seeds can show (power 80 %) is "
            f"{self.distance(effect)} from the threshold."
        )

    def rule(self, contrast: Contrast | None) -> str:
        """One sentence: where the compared value must lie for the claim to hold, and how it was computed."""
        claim, number = self.claim, f"{len(contrast.values)} " if contrast else ""
        seeds = f"{number}{'paired ' if claim.minus else ''}seeds{_where(claim.measure)}"
        compared = claim.combine if claim.minus else "value"
        if claim.slope_over is not None:
            compared = f"{compared} of slopes" if claim.minus else "slope"
        must = f"{compared} must lie {self._threshold()}" + "".join(f"; {clause}" for clause in self._clauses(contrast))
        if claim.decided_by == "every_seed":
            return f"In each of the {seeds} the {must}."
        freedom = len(contrast.values) - 1 if contrast else 0
        degrees = f"{_counted(freedom, 'degree')} of freedom" if freedom else "n - 1 degrees of freedom"
        return f"The 95 % interval over {seeds} (t, {degrees}) of the {'geometric ' * claim.is_ratio}mean {must}."

    def _clauses(self, contrast: Contrast | None) -> list[str]:
        claim, clauses = self.claim, []
        if claim.factor != 1:
            clauses.append(f"the {'difference' if claim.minus else 'value'} is multiplied by {claim.factor:g}")
        if claim.best_over:
            how = "seed by seed" if claim.chosen_seed_by_seed else "in the mean over seeds"
            by = label(claim.chosen_by).removesuffix(" (%)")
            clauses.append(f"each arm stands at its best {', '.join(claim.best_over)} by {by} {how}")
        if contrast is None:
            return clauses
        if contrast.chosen:
            more = f" and {len(contrast.chosen) - MOST_CHOSEN} more" if len(contrast.chosen) > MOST_CHOSEN else ""
            clauses.append(f"chosen were {', '.join(contrast.chosen[:MOST_CHOSEN])}{more}")
        if contrast.imputed:
            worth = f"{claim.when_diverged * scale(claim.measure):g}{_spaced(unit(claim.measure))}"
            clauses.append(f"{_counted(contrast.imputed, 'diverged run')} counted as {worth}")
        if contrast.left_out:
            numbers = ", ".join(map(str, contrast.left_out))
            clauses.append(f"left out: seed{'s' * (len(contrast.left_out) > 1)} {numbers}, which not every arm has")
        is_point = len(contrast.values) > 1 and len(set(contrast.values.values())) == 1
        if is_point and claim.decided_by == "interval":
            clauses.append("all seeds gave the same value, so the interval is a point")
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


def _where(measure: str) -> str:
    """The images that all runs share: the seeds are no sample of test sets."""
    if is_test(measure):
        return " on one test set"
    return " on one validation set" if measure.startswith("validation/") else ""


def _spaced(word: str) -> str:
    return f" {word}" if word else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
