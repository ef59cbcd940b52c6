"""A verdict in words: the numbers in the units in which their measure is shown, and the rule that decided."""

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
    """The words of one claim's verdict. A difference of percentages is given in percentage points."""

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
        """Why an interval decides nothing."""
        where = "reaches over an end of the range" if self.claim.holds.kind == "within" else "lies on both sides"
        return (
            f"The interval {where}. The smallest effect that {seeds} seeds can show (power 80 %) is "
            f"{self.distance(effect)} from the threshold."
        )

    def rule(self, found: Contrast | None) -> str:
        """One sentence: what had to lie where for the claim to hold, and what was done on the way there."""
        claim, number = self.claim, f"{len(found.values)} " if found else ""
        seeds = f"{number}{'paired ' if claim.minus else ''}seeds{_where(claim.measure)}"
        compared = claim.combine if claim.minus else "value"
        if claim.slope_over is not None:
            compared = f"{compared} of slopes" if claim.minus else "slope"
        must = f"{compared} must lie {self._threshold()}" + "".join(f"; {clause}" for clause in self._clauses(found))
        if claim.decided_by == "every_seed":
            return f"In each of the {seeds} the {must}."
        freedom = len(found.values) - 1 if found else 0
        degrees = f"{_counted(freedom, 'degree')} of freedom" if freedom else "n - 1 degrees of freedom"
        return f"The 95 % interval over {seeds} (t, {degrees}) of the {'geometric ' * claim.is_ratio}mean {must}."

    def _clauses(self, found: Contrast | None) -> list[str]:
        claim, clauses = self.claim, []
        if claim.factor != 1:
            clauses.append(f"the {'difference' if claim.minus else 'value'} is multiplied by {claim.factor:g}")
        if claim.best_over:
            how = "seed by seed" if claim.chosen_seed_by_seed else "in the mean over seeds"
            by = label(claim.chosen_by).removesuffix(" (%)")
            clauses.append(f"each arm stands at its best {', '.join(claim.best_over)} by {by} {how}")
        if found is None:
            return clauses
        if found.chosen:
            more = f" and {len(found.chosen) - MOST_CHOSEN} more" if len(found.chosen) > MOST_CHOSEN else ""
            clauses.append(f"chosen were {', '.join(found.chosen[:MOST_CHOSEN])}{more}")
        if found.imputed:
            worth = f"{claim.when_diverged * scale(claim.measure):g}{_spaced(unit(claim.measure))}"
            clauses.append(f"{_counted(found.imputed, 'diverged run')} counted as {worth}")
        if found.left_out:
            numbers = ", ".join(map(str, found.left_out))
            clauses.append(f"left out: seed{'s' * (len(found.left_out) > 1)} {numbers}, which not every arm has")
        is_point = len(found.values) > 1 and len(set(found.values.values())) == 1
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
        """Numbers with so many decimals that half their range has two significant figures.

        They have more where one would be rounded onto a bound of the claim, or over it; and the numbers of a ratio have
        two significant figures each.
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
    """Of what the seeds are a sample, and of what not: every run is evaluated on the same images."""
    if is_test(measure):
        return " on one test set"
    return " on one validation set" if measure.startswith("validation/") else ""


def _spaced(word: str) -> str:
    return f" {word}" if word else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
