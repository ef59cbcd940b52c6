"""The verdict on a claim: holds, does not hold or undecidable, and the rule that decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from runner.claims.claim import Claim, check_claims, parse_claim
from runner.claims.contrast import Undecidable, contrast
from runner.claims.wording import VerdictTexts
from runner.results.measures import measured_probes
from runner.results.runs import Run
from runner.results.statistics import smallest_effect, t_interval

__all__ = ["HOLDS", "HOLDS_NOT", "UNDECIDABLE", "Verdict", "check_claims", "judge"]

HOLDS, HOLDS_NOT, UNDECIDABLE = "holds", "does not hold", "undecidable here"


@dataclass(frozen=True)
class Verdict:
    """A claim with its verdict, the measured value, the rule, and the reason if it is undecidable.

    `estimate` is the mean over seeds; `low` and `high` are the ends of its 95 % interval, or of the seeds' range if
    every seed decides. `smallest_effect` is the smallest distance from the threshold that the study could detect (a
    factor for a ratio). Numbers are in the measure's unit (shares of 1), NaN if unknown.
    """

    claim: str
    source: str
    published: str
    measured: str
    verdict: str
    rule: str
    why: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    smallest_effect: float = math.nan
    smallest_effect_text: str = ""


def judge(claims: Sequence[Mapping], runs: Sequence[Run], *, source: str | None = None) -> list[Verdict]:
    """The verdict on each claim; the study's `source` is put before the claim's own. Raises SettingError."""
    probes = measured_probes(runs)
    return [_verdict(parse_claim(each, number, probes), runs, source) for number, each in enumerate(claims, start=1)]


def _verdict(claim: Claim, runs: Sequence[Run], source: str | None) -> Verdict:
    texts, comparison = VerdictTexts(claim), None
    try:
        comparison = contrast(claim, runs)
        decide = _by_interval if claim.decided_by == "interval" else _by_seed
        decision = decide(claim, list(comparison.values.values()), texts)
        if len(comparison.values) < 2:
            seed = next(iter(comparison.values))
            decision["why"] = f"Only seed {seed} has all runs that are compared; a verdict needs two seeds or more."
    except Undecidable as reason:
        decision = {"measured": "", "verdict": UNDECIDABLE, "why": str(reason)}
    sources = ", ".join(filter(None, (source, claim.source)))
    return Verdict(claim.claim, sources, claim.published, rule=texts.rule(comparison), **decision)


def _by_interval(claim: Claim, values: Sequence[float], texts: VerdictTexts) -> dict:
    """The verdict of the 95 % interval of the mean."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        infinite = "A seed's value is infinite, and an interval needs finite ones (decided_by: every_seed does not)."
        return {**_range(claim, values, texts), "verdict": UNDECIDABLE, "why": infinite}
    low, high = t_interval(values)
    natural = _exp if claim.is_ratio else float
    estimate, low, high, effect = map(natural, (mean(values), low, high, smallest_effect(values)))
    verdict = _decided(low in claim.holds and high in claim.holds, claim.holds.excludes(low, high))
    return {
        "measured": texts.interval(estimate, low, high, len(values)),
        "verdict": verdict,
        "why": texts.why(len(values), effect) if verdict == UNDECIDABLE else "",
        "estimate": estimate,
        "low": low,
        "high": high,
        "seeds": len(values),
        "smallest_effect": effect,
        "smallest_effect_text": texts.distance(effect),
    }


def _by_seed(claim: Claim, values: Sequence[float], texts: VerdictTexts) -> dict:
    """The verdict on which all seeds agree."""
    agreeing, n = sum((_exp(value) if claim.is_ratio else value) in claim.holds for value in values), len(values)
    verdict = _decided(agreeing == n, agreeing == 0) if n > 1 else UNDECIDABLE
    why = f"{agreeing} of {n} seeds satisfy it." if verdict == UNDECIDABLE else ""
    return {**_range(claim, values, texts), "verdict": verdict, "why": why}


def _range(claim: Claim, values: Sequence[float], texts: VerdictTexts) -> dict:
    """The mean and the range of the seeds; a single seed has no range."""
    natural, n = _exp if claim.is_ratio else float, len(values)
    estimate, low, high = map(natural, (sum(values) / n, min(values), max(values)))
    low, high = (low, high) if n > 1 else (math.nan, math.nan)
    measured = texts.range(estimate, low, high, n)
    return {"measured": measured, "estimate": estimate, "low": low, "high": high, "seeds": n}


def _decided(always: bool, never: bool) -> str:
    return HOLDS if always else HOLDS_NOT if never else UNDECIDABLE


def _exp(logarithm: float) -> float:
    """The ratio of a logarithm; infinite where no float is as large."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
