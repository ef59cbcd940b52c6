"""The verdict on a claim: holds, does not hold or undecidable, and the rule that decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from runner.claims.cells import Cell, Undecidable, seeds_in_order, sides
from runner.claims.choice import chance_of_choice, ranks_of_rivals
from runner.claims.claim import DIVERGED, Claim, check_claims, parse_claim
from runner.claims.contrast import Contrast, contrast
from runner.claims.sequential import (
    FIRST_LOOK,
    Look,
    SequentialMean,
    SequentialMedian,
    SequentialShare,
    SequentialShareDifference,
    chance_of_winners,
)
from runner.claims.wording import VerdictTexts
from runner.results.measures import measure, measured_probes, unit
from runner.results.proportions import Share, ShareDifference
from runner.results.run_state import INTERRUPTED, RUNNING
from runner.results.runs import Run
from runner.results.statistics import LEVEL, Mean, Median, holm, mean_of, mean_over_images

__all__ = ["HOLDS", "HOLDS_NOT", "UNDECIDABLE", "Verdict", "check_claims", "judge"]

HOLDS, HOLDS_NOT, UNDECIDABLE = "holds", "does not hold", "undecidable here"


@dataclass(frozen=True)
class Verdict:
    """A claim with its verdict, the measured value, the rule, and the reason if it is undecidable.

    `estimate` with `low` and `high`, the ends of its 95 % interval, is a mean over seeds, a median (sign_test), or a
    share of diverged runs. `p` is two-sided, of the nearest bound of `holds`; `adjusted_p` is Holm's, over all claims
    that are judged together. `smallest_effect` is the smallest distance from the threshold that the study could detect
    (a factor for a ratio). Numbers are in the measure's unit (shares of 1), NaN if unknown. Of a sequential study
    `looks` has what the interval was after each seed, and `lacking` the settings of the arms of which more seeds may
    decide the claim.
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
    p: float = math.nan
    adjusted_p: float = math.nan
    looks: tuple[Look, ...] = ()
    lacking: tuple[Mapping[str, object], ...] = ()

    @property
    def is_decided(self) -> bool:
        return self.verdict != UNDECIDABLE

    @property
    def after_holm(self) -> str:
        """The verdict where the error rate is held over all claims of the study together."""
        return self.verdict if self.adjusted_p <= LEVEL else UNDECIDABLE


def judge(
    claims: Sequence[Mapping], runs: Sequence[Run], *, source: str | None = None, sequential: bool = False
) -> list[Verdict]:
    """The verdict on each claim; the study's `source` is put before the claim's own. Raises SettingError.

    `sequential` for a study to which seeds are added until it is decided (`sweep.decide`): the first look that decides
    a claim gives its verdict, by intervals that hold at all looks together; see runner.claims.sequential.
    """
    probes = measured_probes(runs)
    if sequential:
        runs = [run for run in runs if run.status not in (RUNNING, INTERRUPTED)]
    judged = _sequential_verdict if sequential else _verdict
    verdicts = [judged(parse_claim(each, number, probes), runs, source) for number, each in enumerate(claims, start=1)]
    adjusted = holm([verdict.p for verdict in verdicts])
    return [replace(verdict, adjusted_p=p) for verdict, p in zip(verdicts, adjusted, strict=True)]


def _verdict(claim: Claim, runs: Sequence[Run], source: str | None) -> Verdict:
    texts, comparison, decision = VerdictTexts(claim), None, {"measured": "", "verdict": UNDECIDABLE}
    try:
        if claim.measure == DIVERGED:
            decision = of_shares(claim, *sides(claim, runs), texts)
        else:
            comparison = contrast(claim, runs)
            decision = _of_seeds(claim, comparison, runs, texts)
    except Undecidable as reason:
        decision["why"] = str(reason)
    return _as_verdict(claim, source, texts.rule(comparison), decision)


def _sequential_verdict(claim: Claim, runs: Sequence[Run], source: str | None) -> Verdict:
    """The verdict of the first look that decides, or of the last; `lacking` are the arms that need more seeds."""
    texts, comparison = VerdictTexts(claim, is_sequential=True), None
    decision, looks, cells = {"measured": "", "verdict": UNDECIDABLE}, [], ()
    try:
        if claim.measure == DIVERGED:
            plus, minus = sides(claim, runs)
            cells, seeds = (*plus, *minus), seeds_in_order([*plus, *minus])

            def decide(number: int) -> dict:
                first = [[_first(cell, seeds[:number]) for cell in side] for side in (plus, minus)]
                return of_shares(claim, *first, texts)
        else:
            comparison = contrast(claim, runs, in_order=True)
            cells, seeds = comparison.cells, list(comparison.values)

            def decide(number: int) -> dict:
                return _of_seeds(claim, comparison.first(number), runs, texts)

        decisions = [decide(number) for number in range(FIRST_LOOK, len(seeds) + 1)]
        if not decisions:
            decision["why"] = texts.why_no_look(len(seeds))
        for decision in decisions:
            if decision["verdict"] != UNDECIDABLE:
                break
        looks = [
            Look(**{key: each[key] for key in ("estimate", "low", "high")}, seeds=number)
            for number, each in enumerate(decisions, FIRST_LOOK)
            if "low" in each
        ]
        if comparison is not None:
            comparison = comparison.first(decision.get("seeds", len(seeds)))
    except Undecidable as reason:
        decision["why"], cells = str(reason), reason.lacking
    decision["looks"] = tuple(looks)
    is_infinite = "estimate" in decision and "low" not in decision  # it stays so, however many seeds there are
    if decision["verdict"] == UNDECIDABLE and not is_infinite:
        decision["lacking"] = tuple(cell.settings for cell in cells)
    return _as_verdict(claim, source, texts.rule(comparison, decision.get("seeds", 0)), decision)


def _as_verdict(claim: Claim, source: str | None, rule: str, decision: dict) -> Verdict:
    sources = ", ".join(filter(None, (source, claim.source)))
    return Verdict(claim.claim, sources, claim.published, rule=rule, **decision)


def _first(cell: Cell, seeds: Sequence[int]) -> Cell:
    return Cell(cell.settings, {seed: cell.runs[seed] for seed in seeds})


def _of_seeds(claim: Claim, comparison: Contrast, runs: Sequence[Run], texts: VerdictTexts) -> dict:
    """The verdict of the interval over seeds, and images where they are known."""
    values = tuple(comparison.values.values())
    is_median = claim.decided_by == "sign_test"
    if len(values) < 2:
        why = f"Only seed {next(iter(comparison.values))} has all runs that are compared; a verdict needs two or more."
        return {**_point(claim, values[0], texts), "verdict": UNDECIDABLE, "why": why}
    if not is_median and not all(map(math.isfinite, values)):
        why = "A seed's value is infinite, and a mean needs finite ones (decided_by: sign_test does not)."
        return {**_point(claim, sum(values) / len(values), texts), "verdict": UNDECIDABLE, "why": why}
    estimate = Median(values) if is_median else estimated_mean(claim, comparison)
    if texts.is_sequential:
        estimate = (SequentialMedian if is_median else SequentialMean)(**vars(estimate))
    low, high = estimate.interval()
    natural = _exp if claim.is_ratio else float
    center, low, high = natural(estimate.estimate), natural(low), natural(high)
    verdict = _decided(low in claim.holds and high in claim.holds, claim.holds.excludes(low, high))
    bounds = [math.log(bound) if claim.is_ratio else bound for bound in claim.holds.bounds]
    decision = {
        "measured": texts.interval(center, low, high, len(values), comparison.images),
        "verdict": verdict,
        "estimate": center,
        "low": low,
        "high": high,
        "seeds": len(values),
        "p": max(map(estimate.p_value, bounds)),
    }
    why = ""
    if is_median:
        why = texts.why_median(len(values)) if verdict == UNDECIDABLE else ""
        if claim.chosen_seed_by_seed and (chance := _chance(claim, comparison, runs, texts)) > LEVEL:
            why = texts.why_chance(chance)
            decision |= {"verdict": UNDECIDABLE, "p": max(decision["p"], chance)}
    elif not (estimate.seed_error or estimate.image_error) and not claim.measure.startswith("model/"):
        why = "All seeds gave the same value, from which no spread can be told."
        decision |= {"verdict": UNDECIDABLE, "p": math.nan}
    else:
        effects = [natural(effect) for effect in estimate.smallest_effect()]
        decision |= {"smallest_effect": effects[0], "smallest_effect_text": texts.distance(*effects)}
        why = texts.why(len(values), effects) if verdict == UNDECIDABLE else ""
    return {**decision, "why": why}


def _chance(claim: Claim, comparison: Contrast, runs: Sequence[Run], texts: VerdictTexts) -> float:
    """How probable the choice of settings is if these change nothing."""
    cells = [cell for side in sides(claim, runs) for cell in side]
    if texts.is_sequential:
        return chance_of_winners(ranks_of_rivals(claim, cells, comparison.values))
    return chance_of_choice(ranks_of_rivals(claim, cells))


def estimated_mean(claim: Claim, comparison: Contrast) -> Mean:
    """The mean over seeds, within what shares can be; of accuracies with a deviation over images."""
    values = list(comparison.values.values())
    about = {}
    if unit(claim.measure) == "%" and not claim.is_ratio and claim.transform is None and claim.slope_over is None:
        span = abs(claim.factor)
        is_difference = claim.minus or claim.minus_measure or claim.factor != 1
        about = {"limits": (-span, span)} if is_difference else {"is_share": True}
    if comparison.images is not None:
        return replace(mean_over_images(comparison.images, abs(claim.factor), **about), estimate=mean(values))
    # without predictions.npz: as if no image but two told the arms apart
    floor = abs(claim.factor) * math.sqrt(2) / comparison.num_images if about and comparison.num_images else 0.0
    return mean_of(values, image_error=floor, **about)


def of_shares(claim: Claim, plus: Sequence[Cell], minus: Sequence[Cell], texts: VerdictTexts) -> dict:
    """The verdict on a share of diverged runs, each run a trial."""
    first, second = _share(plus), _share(minus) if minus else None
    estimate = ShareDifference(first, second) if second else first
    if texts.is_sequential:
        counts = _counts_by_seed(plus, minus)
        estimate = SequentialShareDifference(first, second, counts) if second else SequentialShare(**vars(first))
    low, high = estimate.interval()
    center = estimate.estimate
    p = max(map(estimate.p_value, claim.holds.bounds))
    if second and claim.holds.bounds == (0.0,):
        is_there = center in claim.holds
        verdict = _decided(p <= LEVEL and is_there, p <= LEVEL and not is_there)
        why = texts.why_fisher(first.number, second.number)
    else:
        verdict = _decided(low in claim.holds and high in claim.holds, claim.holds.excludes(low, high))
        why = "The interval reaches over the threshold."
    return {
        "measured": texts.shares(first, second, low, high, p),
        "verdict": verdict,
        "why": why if verdict == UNDECIDABLE else "",
        "estimate": center,
        "low": low,
        "high": high,
        "seeds": len({seed for cell in (*plus, *minus) for seed in cell.runs}),
        "p": p,
    }


def _counts_by_seed(plus: Sequence[Cell], minus: Sequence[Cell]) -> tuple[tuple[int, int, int, int], ...]:
    """For each seed the diverged runs and all runs of both sides."""
    rows = []
    for seed in sorted(plus[0].runs):
        shares = [_share([_first(cell, [seed]) for cell in side]) for side in (plus, minus)]
        rows.append(tuple(number for share in shares for number in (share.count, share.number)))
    return tuple(rows)


def _share(cells: Sequence[Cell]) -> Share:
    runs = [run for cell in cells for twins in cell.runs.values() for run in twins]
    return Share(sum(measure(run, DIVERGED) == 1 for run in runs), len(runs))


def _point(claim: Claim, value: float, texts: VerdictTexts) -> dict:
    value = _exp(value) if claim.is_ratio else value
    return {"measured": texts.point(value), "estimate": value}


def _decided(always: bool, never: bool) -> str:
    return HOLDS if always else HOLDS_NOT if never else UNDECIDABLE


def _exp(logarithm: float) -> float:
    """The ratio of a logarithm; infinite where no float is as large."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
