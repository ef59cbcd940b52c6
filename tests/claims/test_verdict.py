from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from runner.claims.verdict import Verdict, judge
from runner.results.runs import Run

NOISE = [0.004, -0.001, 0.003, -0.006, 0.002]


def a_run(
    seed: int, test: float | None = 0.5, *, validation: float = 0.5, status: str = "completed", **settings
) -> Run:
    """A run with the settings given, dots written as two underscores."""
    texts = {key.replace("__", "."): str(value) for key, value in settings.items()}
    on_test = texts.pop("on_test", "") == "True"
    return Run(
        folder=Path(",".join([*(f"{key}={value}" for key, value in texts.items()), f"seed={seed}"])),
        status=status,
        settings={**texts, "seed": str(seed)},
        seed=seed,
        error="out of memory\nmore" if status == "failed" else None,
        summary={
            "metrics": {"accuracy": test, "loss": 1.0},
            "best": {"accuracy": validation, "loss": 1 - validation},
            "data": {"validation_source": "test" if on_test else "train"},
        },
    )


def runs_of(values: Sequence[float], **settings: object) -> list[Run]:
    return [a_run(seed, value, **settings) for seed, value in enumerate(values)]


def one(runs: Sequence[Run], holds: Mapping | None = None, **claim: object) -> Verdict:
    holds = {"holds": holds} if holds is not None else {}
    default = {"claim": "It helps.", "measure": "test/score", "plus": {"case": "new"}, "holds": {"above": 0}}
    [verdict] = judge([{**default, **holds, **claim}], runs)
    return verdict


def two_arms(plus: Sequence[float], minus: Sequence[float]) -> list[Run]:
    return [*runs_of(plus, case="new"), *runs_of(minus, case="old")]


VERSUS = {"minus": {"case": "old"}}


def test_a_paired_difference_is_a_paired_t_interval():
    plus, minus = [0.62, 0.60, 0.65, 0.61], [0.60, 0.59, 0.62, 0.60]
    verdict = one([*two_arms(plus, minus)[::-1]], **VERSUS)
    reference = scipy.stats.ttest_rel(plus, minus).confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx((reference.low, reference.high))
    assert verdict.estimate == pytest.approx(0.0175)
    # t_{0.975, 3} = 3.18245, t_{0.8, 3} = 0.97847, s = 0.0095743
    assert verdict.smallest_effect == pytest.approx((3.18245 + 0.97847) * 0.0095743 / 2, rel=1e-4)
    assert (verdict.verdict, verdict.seeds, verdict.why) == ("holds", 4, "")
    assert verdict.measured == "+1.8 [+0.2, +3.3] percentage points, 4 seeds"
    assert verdict.smallest_effect_text == "2 percentage points"
    assert verdict.rule == (
        "The 95 % interval over 4 paired seeds on one test set (t, 3 degrees of freedom) of the mean difference must "
        "lie above 0 percentage points."
    )


def test_one_side_alone_is_its_mean():
    verdict = one(two_arms([0.90, 0.92, 0.94], [0.1] * 3), {"within": [0.8, 1.0]})
    margin = scipy.stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3)
    assert (verdict.estimate, verdict.low, verdict.high) == pytest.approx((0.92, 0.92 - margin, 0.92 + margin))
    assert verdict.measured == "92.0 [87.0, 97.0] %, 3 seeds"
    assert "3 seeds on one test set (t, 2 degrees of freedom) of the mean value must lie between 80 and 100 %" in (
        verdict.rule
    )


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        *[({"above": -0.01}, "holds"), ({"above": 0.01}, "undecidable here"), ({"above": 0.03}, "does not hold")],
        *[({"below": 0.03}, "holds"), ({"below": 0.01}, "undecidable here"), ({"below": -0.01}, "does not hold")],
        *[({"within": [-0.01, 0.03]}, "holds"), ({"within": [0.01, 0.03]}, "undecidable here")],
        *[({"within": [0.03, 0.04]}, "does not hold"), ({"within": [-0.04, -0.01]}, "does not hold")],
        ({"within": [0.0099, 0.0101]}, "undecidable here"),
    ],
)
def test_the_whole_interval_decides(holds, verdict):
    found = one(two_arms([0.51 + noise for noise in NOISE], [0.5] * 5), holds, **VERSUS)
    assert -0.01 < found.low < 0.0099
    assert 0.0101 < found.high < 0.03
    assert found.verdict == verdict
    assert bool(found.why) == (verdict == "undecidable here")


def test_what_the_study_could_have_seen_is_told_where_nothing_is_decided():
    found = one(two_arms([0.51 + noise for noise in NOISE], [0.5] * 5), {"above": 0.01}, **VERSUS)
    assert found.why == (
        "The interval lies on both sides. The smallest effect that 5 seeds can show (power 80 %) is "
        f"{found.smallest_effect_text} from the threshold."
    )
    assert "must lie above 1 percentage point." in found.rule


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        *[({"above": 0.25}, "does not hold"), ({"below": 0.25}, "does not hold"), ({"within": [0.25, 1]}, "holds")],
        *[({"above": 0.2}, "holds"), ({"within": [0.26, 1]}, "does not hold")],
    ],
)
def test_seeds_that_agree_exactly_have_an_interval_of_one_point(holds, verdict):
    found = one(two_arms([0.75] * 3, [0.5] * 3), holds, **VERSUS)
    assert (found.estimate, found.low, found.high, found.smallest_effect) == (0.25, 0.25, 0.25, 0)
    assert found.verdict == verdict
    assert "all seeds gave the same value, so the interval is a point" in found.rule


def test_no_number_is_rounded_onto_a_bound_or_over_it():
    # the interval by scipy is [0.099935, 0.300065]: with the two digits that its width gives it, [+10, +30]
    plus = [0.2 - 0.1, 0.2, 0.2 + 0.1]
    half = float(scipy.stats.t.interval(0.95, 2, 0.2, scipy.stats.sem(plus))[1]) - 0.2
    runs = two_arms([0.2 + (value - 0.2) * 0.100065 / half for value in plus], [0.0] * 3)
    assert "+20 [+10, +30] percentage points" in one(runs, {"above": 0.15}, **VERSUS).measured
    assert "[+9.99, +30.01]" in one(runs, {"above": 0.1}, **VERSUS).measured


def test_a_ratio_is_one_of_geometric_means():
    plus, minus = np.array([0.8, 0.6, 0.7, 0.9]), np.array([0.4, 0.35, 0.3, 0.4])
    found = one(two_arms(plus.tolist(), minus.tolist()), {"above": 1.5}, combine="ratio", **VERSUS)
    reference = scipy.stats.ttest_rel(np.log(plus), np.log(minus)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(reference.low), math.exp(reference.high)))
    assert found.estimate == pytest.approx(scipy.stats.gmean(plus / minus))
    assert (found.verdict, found.smallest_effect > 1) == ("holds", True)
    assert found.measured.startswith("2.06 [")
    assert found.smallest_effect_text.startswith("a factor of 1.")
    assert "of the geometric mean ratio must lie above 1.5." in found.rule


def test_a_ratio_near_zero_keeps_its_figures():
    runs = two_arms([0.5, 0.002, 0.1], [0.1, 0.1, 0.1])
    # exp(t_{0.975, 2} s / sqrt(3)) about the geometric mean 0.1^(1/3): by scipy [0.000401, 537.3]
    measured = one(runs, {"above": 1}, combine="ratio", **VERSUS).measured
    assert measured == "0.46 [0.00040, 537], 3 seeds"


def test_what_has_no_logarithm_is_not_compared():
    runs = two_arms([0.5, 0.5], [0.5, 0.0])
    assert one(runs, {"above": 1}, combine="ratio", **VERSUS).why == (
        "A value of seed 1 is 0, and a ratio needs values above 0."
    )
    assert one(runs, transform="log10", **VERSUS).why == ("test/score of case=old,seed=1 is 0, which has no logarithm.")


def test_a_transform_acts_on_each_run():
    found = one(two_arms([0.4, 0.8, 0.8], [0.1, 0.1, 0.4]), {"above": 1}, transform="log2", **VERSUS)
    assert found.estimate == pytest.approx((2 + 3 + 1) / 3)
    assert found.measured.endswith("doublings, 3 seeds")


def factorial(values: Mapping[tuple[str, str], Sequence[float]]) -> list[Run]:
    return [run for (norm, size), row in values.items() for run in runs_of(row, norm=norm, size=size)]


def test_an_interaction_is_a_difference_of_differences():
    values = {("a", "1"): [0.8, 0.9], ("b", "1"): [0.7, 0.7], ("a", "2"): [0.5, 0.5], ("b", "2"): [0.5, 0.6]}
    plus, minus = [{"norm": "a", "size": 1}, {"norm": "b", "size": 2}], [{"norm": "a", "size": 2}]
    found = one(factorial(values), plus=plus, minus=[*minus, {"norm": "b", "size": "1.0"}], factor=2)
    # (a1 - b1) - (a2 - b2) by seed: 0.1 - 0 and 0.2 - (-0.1); the mean of two cells a side is half of it
    assert found.estimate == pytest.approx(((0.1 - 0.0) + (0.2 + 0.1)) / 2)
    assert "the difference is multiplied by 2" in found.rule


def test_a_side_is_the_mean_of_all_its_cells():
    values = {("a", "1"): [0.8, 0.9], ("b", "1"): [0.7, 0.7], ("a", "2"): [0.5, 0.5], ("b", "2"): [0.5, 0.6]}
    found = one(factorial(values), plus={"norm": "a"}, minus={"norm": ["b"]})
    assert found.estimate == pytest.approx(((0.65 - 0.6) + (0.7 - 0.65)) / 2)


def test_only_seeds_that_every_arm_has_are_paired():
    runs = two_arms([0.6, 0.7, 0.9], [0.5, 0.5])
    found = one(runs, **VERSUS)
    assert (found.seeds, found.estimate) == (2, pytest.approx(0.15))
    assert "left out: seed 2, which not every arm has" in found.rule


def test_a_run_that_was_made_again_takes_the_place_of_the_one_that_failed():
    runs = [*two_arms([0.6, 0.7], [0.5, 0.5]), a_run(1, None, status="failed", case="new")]
    assert one(runs, **VERSUS).estimate == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("runs", "claim", "why"),
    [
        (two_arms([0.6], [0.5, 0.5]), VERSUS, "Only seed 0 has all runs that are compared"),
        (two_arms([0.6], [0.5]), {**VERSUS, "decided_by": "every_seed"}, "needs two seeds or more"),
        (two_arms([0.6, 0.6], []), VERSUS, "There is no run with case=old"),
        ([], {}, "There is no run with case=new"),
        ([a_run(0, case="new"), a_run(1, case="old")], VERSUS, "No seed is common"),
        (
            [*two_arms([1, 1], [0]), a_run(1, status="failed", case="old")],
            VERSUS,
            "case=old,seed=1 (failed: out of memory)",
        ),
        ([*two_arms([1, 1], [0]), a_run(1, status="unreadable", case="old")], VERSUS, "unreadable"),
        ([*two_arms([1, 1], [0]), a_run(1, status="interrupted", case="old")], VERSUS, "1 of 4 runs did not"),
        ([*two_arms([1, 1], [0]), a_run(1, None, status="diverged", case="old")], VERSUS, "it diverged, and the claim"),
        (two_arms([1, 1], [0, None]), VERSUS, "case=old,seed=1 has no test/score"),
    ],
)
def test_missing_runs_leave_a_claim_undecided(runs, claim, why):
    found = one(runs, **claim)
    assert found.verdict == "undecidable here"
    assert why in found.why
    assert math.isnan(found.low)
    assert math.isnan(found.smallest_effect)


def test_a_cell_without_its_counterpart_leaves_a_claim_undecided():
    runs = [*two_arms([], []), *runs_of([0.6, 0.6], case="new", lr=0.1), *runs_of([0.9, 0.9], case="new", lr=0.3)]
    runs += runs_of([0.5, 0.5], case="old", lr=0.1)
    why = "There is no run with case=old and lr=0.3, which what it is compared with has."
    assert one(runs, **VERSUS).why == why
    assert one([*runs, *runs_of([0.5, 0.5], case="old", lr=0.3)], **VERSUS).why == ""


def test_diverged_runs_count_as_the_claim_says():
    runs = [*two_arms([0.6, 0.6, 0.6], [0.5, 0.5]), a_run(2, None, status="diverged", case="old")]
    found = one(runs, when_diverged=0.1, **VERSUS)
    assert found.estimate == pytest.approx((0.1 + 0.1 + 0.5) / 3)
    assert "1 diverged run counted as 10 %" in found.rule


def test_how_many_runs_diverge_can_be_claimed():
    runs = [a_run(seed, None, status="diverged", case="new") for seed in range(3)] + runs_of([0.5] * 3, case="old")
    found = one(runs, {"above": 0.5}, measure="status/diverged", decided_by="every_seed", **VERSUS)
    assert (found.verdict, found.measured) == ("holds", "+100 (from +100 to +100) percentage points, 3 seeds")
    assert found.rule == "In each of the 3 paired seeds the difference must lie above 50 percentage points."


@pytest.mark.parametrize(
    ("threshold", "verdict", "why"),
    [(0.05, "holds", ""), (0.15, "undecidable here", "2 of 3 seeds satisfy it."), (0.3, "does not hold", "")],
)
def test_every_seed_decides(threshold, verdict, why):
    runs = two_arms([0.6, 0.7, 0.8], [0.5, 0.5, 0.5])
    found = one(runs, {"above": threshold + 1e-9}, decided_by="every_seed", **VERSUS)
    assert (found.verdict, found.why) == (verdict, why)
    assert (found.low, found.high) == pytest.approx((0.1, 0.3))
    assert math.isnan(found.smallest_effect)


def test_infinite_values_can_be_decided_by_every_seed_alone():
    runs = two_arms([math.inf, 0.6], [0.5, 0.5])
    assert one(runs, decided_by="every_seed", **VERSUS).verdict == "holds"
    assert "infinite, and an interval needs finite ones" in one(runs, **VERSUS).why
    assert "seed 0 are infinite" in one(two_arms([math.inf] * 2, [math.inf, 0]), decided_by="every_seed", **VERSUS).why


def grid(scores: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]]) -> list[Run]:
    """Runs by case and learning rate, each with validation and test scores by seed."""
    return [
        a_run(seed, test, validation=validation, case=case, optimizer__lr=lr)
        for (case, lr), (validations, tests) in scores.items()
        for seed, (validation, test) in enumerate(zip(validations, tests, strict=True))
    ]


LRS = {
    ("new", "0.1"): ([0.7, 0.7], [0.71, 0.73]),
    ("new", "0.3"): ([0.9, 0.4], [0.99, 0.99]),  # the best seed and the best test score, not the best mean
    ("old", "0.1"): ([0.6, 0.6], [0.60, 0.60]),
    ("old", "0.3"): ([0.5, 0.6], [0.80, 0.80]),
}
BEST = {**VERSUS, "best_over": ["optimizer.lr"]}


def test_each_arm_stands_at_its_best_by_validation_in_the_mean():
    found = one(grid(LRS), **BEST)
    assert found.estimate == pytest.approx(0.12)
    assert (
        "each arm stands at its best optimizer.lr by validation score in the mean over seeds; "
        "chosen were optimizer.lr 0.1 for case=new, optimizer.lr 0.1 for case=old" in found.rule
    )


def test_the_smaller_loss_chooses():
    found = one(grid({**LRS, ("new", "0.3"): ([0.8, 0.61], [0.99, 0.97])}), chosen_by="validation/loss", **BEST)
    assert found.estimate == pytest.approx(0.98 - 0.6)


def test_of_equals_the_smaller_value_is_chosen():
    # as floats the mean of 0.1 and 0.8 is larger than that of 0.2 and 0.7, by the last bit
    scores = {("new", "1e-1"): ([0.1, 0.8], [0.1, 0.1]), ("new", "0.03"): ([0.2, 0.7], [0.3, 0.3])}
    for order in (scores, dict(reversed(scores.items()))):
        assert one(grid(order), best_over="optimizer.lr").estimate == pytest.approx(0.3)


def test_the_value_with_fewer_diverged_runs_is_chosen_and_the_others_do_not_matter():
    runs = grid(LRS)
    runs += [a_run(0, 0.9, validation=0.99, case=case, optimizer__lr=1) for case in ("new", "old")]
    runs += [a_run(1, None, status="diverged", case=case, optimizer__lr=1) for case in ("new", "old")]
    found = one(runs, **BEST)
    assert found.estimate == pytest.approx(0.12)
    assert "optimizer.lr 0.1 (an end of the range) for case=new" in found.rule


def test_nothing_is_chosen_on_the_test_split():
    runs = [a_run(seed, case="new", optimizer__lr=lr, on_test=True) for seed in (0, 1) for lr in (1, 2)]
    assert "measured on the test split, on which nothing may be chosen" in one(runs, best_over="optimizer.lr").why


def by_size(case: str, values: Mapping[int, Sequence[float]]) -> list[Run]:
    return [run for size, row in values.items() for run in runs_of(row, case=case, size=size)]


def test_slopes_are_taken_seed_by_seed():
    new, old = (
        {256: [0.1, 0.2], 512: [0.3, 0.3], 2048: [0.4, 0.9]},
        {256: [0.1, 0.1], 512: [0.2, 0.1], 2048: [0.4, 0.1]},
    )
    runs = [*by_size("new", new), *by_size("old", old)]
    expected = [np.polyfit([8, 9, 11], [row[seed] for row in new.values()], 1)[0] for seed in (0, 1)]
    alone = one(runs, slope_over="size")
    assert alone.estimate == pytest.approx(np.mean(expected))
    assert "percentage points a doubling of size, 2 seeds" in alone.measured
    others = [np.polyfit([8, 9, 11], [row[seed] for row in old.values()], 1)[0] for seed in (0, 1)]
    both = one(runs, slope_over="size", **VERSUS)
    assert both.estimate == pytest.approx(np.mean(expected) - np.mean(others))
    assert "of the mean difference of slopes must" in both.rule
    linear = np.polyfit([256, 512, 2048], np.mean(list(new.values()), axis=1), 1)[0]
    assert one(runs, slope_over="size", slope_scale="linear").estimate == pytest.approx(linear)
    assert "slope needs two" in one(by_size("new", {256: [0.1, 0.2]}), slope_over="size").why


def test_how_the_best_setting_moves_is_a_slope_of_the_choice_of_each_seed():
    best = {(256, 0): 0.01, (1024, 0): 0.04, (256, 1): 0.02, (1024, 1): 0.02}
    runs = [
        a_run(seed, validation=0.9 if clip == chosen else 0.5, case="new", size=size, agc__clip=clip)
        for (size, seed), chosen in best.items()
        for clip in (0.01, 0.02, 0.04)
    ]
    claim = {"measure": "setting/agc.clip", "transform": "log2", "best_over": ["agc.clip"], "slope_over": "size"}
    found = one(runs, {"above": 0}, decided_by="every_seed", **claim)
    # from log2 0.01 to log2 0.04 over two doublings, and not at all
    assert (found.low, found.high, found.estimate) == pytest.approx((0.0, 1.0, 0.5))
    assert found.verdict == "undecidable here"
    assert "at its best agc.clip by validation score seed by seed" in found.rule


def test_sources_are_joined():
    claim = {"claim": "A", "measure": "test/score", "plus": {"case": "new"}, "holds": {"above": 0}, "published": 0.5}
    [verdict] = judge([{**claim, "source": "figure 5"}], [], source="Bjorck et al.")
    assert (verdict.source, verdict.published) == ("Bjorck et al., figure 5", "0.5")
    assert judge([claim], [])[0].source == ""


def test_nothing_is_decided_where_every_run_diverged():
    runs = [a_run(seed, None, status="diverged", case=case) for seed in range(3) for case in ("new", "old")]
    verdict = one(runs, {"within": [-0.1, 0.1]}, when_diverged=0.1, **VERSUS)
    assert (verdict.verdict, verdict.measured) == ("undecidable here", "")
    assert "Every run that is compared diverged" in verdict.why
    runs[0] = a_run(0, 0.1, case="new")
    assert one(runs, {"within": [-0.1, 0.1]}, when_diverged=0.1, **VERSUS).verdict == "holds"
