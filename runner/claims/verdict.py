"""The verdict on a claim: whether what was measured decides it, which way, and by what rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from runner.claims.claim import Claim, check_claims, parse_claim
from runner.claims.contrast import Contrast, Undecidable, contrast
from runner.claims.wording import VerdictTexts
from runner.results.runs import Run
from runner.results.statistics import smallest_effect, t_interval

__all__ = ["HOLDS", "HOLDS_NOT", "UNDECIDABLE", "Verdict", "check_claims", "judge"]

HOLDS, HOLDS_NOT, UNDECIDABLE = "holds", "does not hold", "undecidable here"


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured, whether it holds, the rule that decided, and why it is undecidable if it is.

    `estimate` is the mean over seeds, `low` and `high` are the ends of its 95 % interval, or of the seeds' range where
    every seed decides; `smallest_effect` is the distance from the threshold that the study could have seen (a factor
    if a ratio is compared). These are in the measure's own unit (shares of 1), NaN where there is none.
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
    """A verdict on each claim; `source` is the study's and is put before the claim's own.

    Raises SettingError for a claim that is not written as one.
    """
    return [_verdict(parse_claim(written, number), runs, source) for number, written in enumerate(claims, start=1)]


def _verdict(claim: Claim, runs: Sequence[Run], source: str | None) -> Verdict:
    sources = ", ".join(filter(None, (source, claim.source)))
    texts = VerdictTexts(claim)
    try:
        found = contrast(claim, runs)
        decision = (
            _by_interval(claim, found, texts) if claim.decided_by == "interval" else _by_seed(claim, found, texts)
        )
    except Undecidable as reason:
        found, decision = None, {"measured": "", "verdict": UNDECIDABLE, "why": str(reason)}
    return Verdict(claim.claim, sources, claim.published, rule=texts.rule(found), **decision)


def _by_interval(claim: Claim, found: Contrast, texts: VerdictTexts) -> dict:
    """What the interval of the mean decides."""
    values = list(found.values.values())
    if len(values) < 2 or not all(map(math.isfinite, values)):
        infinite = "A seed's value is infinite, and an interval needs finite ones (decided_by: every_seed does not)."
        return _undecided(claim, found, texts, infinite)
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


def _by_seed(claim: Claim, found: Contrast, texts: VerdictTexts) -> dict:
    """What all seeds agree on."""
    values = [_exp(value) if claim.is_ratio else value for value in found.values.values()]
    agreeing, n = sum(value in claim.holds for value in values), len(values)
    decision = _undecided(claim, found, texts, f"{agreeing} of {n} seeds satisfy it.")
    if n < 2 or 0 < agreeing < n:
        return decision
    return {**decision, "verdict": _decided(agreeing == n, agreeing == 0), "why": ""}


def _undecided(claim: Claim, found: Contrast, texts: VerdictTexts, why: str) -> dict:
    """The range of the seeds, and why it decides nothing: one seed alone, or else `why`."""
    natural, n = _exp if claim.is_ratio else float, len(found.values)
    values = list(found.values.values())
    estimate, low, high = map(natural, (sum(values) / n, min(values), max(values)))
    if n < 2:
        why = f"Only seed {next(iter(found.values))} has all runs that are compared; a verdict needs two seeds or more."
        low = high = math.nan
    measured = texts.range(estimate, low, high, n)
    return {
        "measured": measured,
        "verdict": UNDECIDABLE,
        "why": why,
        "estimate": estimate,
        "low": low,
        "high": high,
        "seeds": n,
    }


def _decided(always: bool, never: bool) -> str:
    return HOLDS if always else HOLDS_NOT if never else UNDECIDABLE


def _exp(logarithm: float) -> float:
    """The ratio of a logarithm; infinite where no float is as large."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
