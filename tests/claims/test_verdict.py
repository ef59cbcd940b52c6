from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from runner.claims.verdict import Verdict, judge
from runner.results.predictions import write_predictions
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
    # s = 0.0095743; the noncentral t of 3 degrees of freedom lies above t_{0.975} = 3.18245 with probability 0.8
    needed = scipy.optimize.brentq(lambda nc: scipy.stats.nct.sf(3.18245, 3, nc) - 0.8, 1, 10)
    assert verdict.smallest_effect == pytest.approx(needed * 0.0095743 / 2, rel=1e-4)
    assert verdict.p == pytest.approx(scipy.stats.ttest_rel(plus, minus).pvalue)
    assert (verdict.verdict, verdict.seeds, verdict.why) == ("holds", 4, "")
    assert verdict.measured == "+1.8 [+0.2, +3.3] percentage points, 4 seeds"
    # times sqrt(3 / chi^2) at 0.975 and 0.025: 9.3484 and 0.2158
    assert verdict.smallest_effect_text == "2 percentage points (1.2 to 7.6)"
    assert verdict.rule == (
        "The 95 % interval over 4 paired seeds on one test set (t, 3 degrees of freedom) of the mean difference must "
        "lie above 0 percentage points."
    )


def test_one_share_alone_has_its_interval_on_the_logit_scale():
    verdict = one(two_arms([0.90, 0.92, 0.94], [0.1] * 3), {"within": [0.8, 1.0]})
    margin = scipy.stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3) / (0.92 * 0.08)
    ends = scipy.special.expit(scipy.special.logit(0.92) + np.array([-margin, margin]))
    assert (verdict.estimate, verdict.low, verdict.high) == pytest.approx((0.92, *ends))
    assert verdict.measured == "92.0 [85.4, 95.8] %, 3 seeds"
    assert "3 seeds on one test set (t, 2 degrees of freedom) of the mean value must lie between 80 and 100 %" in (
        verdict.rule
    )


def test_no_interval_leaves_what_shares_can_be():
    lost = one(two_arms([0.9, 0.3, 0.9], [0.1, 0.2, 0.1]), **VERSUS)
    assert (lost.low < 0, lost.high) == (True, 1.0)
    alone = one(two_arms([0.99, 0.999, 0.9], []))
    assert 0 < alone.low < alone.high < 1


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


def test_seeds_that_agree_exactly_tell_nothing_of_their_spread():
    for threshold in (0, 0.2, 0.25, 0.3):
        found = one(two_arms([0.75] * 3, [0.5] * 3), {"above": threshold}, **VERSUS)
        assert (found.estimate, found.verdict) == (0.25, "undecidable here")
        assert "All seeds gave the same value, from which no spread can be told" in found.why


def with_images(runs: Sequence[Run], number: int) -> list[Run]:
    """The runs, as if they were tested on so many images."""
    return [replace(run, summary={**run.summary, "data": {"test": number, "validation": number}}) for run in runs]


@pytest.mark.parametrize(("images", "seeds"), [(359, 2), (359, 10), (10_000, 5)])
def test_one_image_in_every_seed_decides_nothing_and_ten_do(images, seeds):
    def of(better):
        return with_images(two_arms([0.9 + better / images] * seeds, [0.9] * seeds), images)

    assert one(of(0), **VERSUS).verdict == one(of(1), **VERSUS).verdict == "undecidable here"
    # the deviation over images of two that differ: sqrt(2) / images
    assert one(of(1), **VERSUS).high == pytest.approx((1 + 1.95996 * math.sqrt(2)) / images, rel=1e-4)
    assert one(of(10), **VERSUS).verdict == "holds"


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
        (two_arms([0.6], [0.5]), {**VERSUS, "decided_by": "sign_test"}, "needs two or more"),
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
        (
            [a_run(seed, None, status="diverged", case=case) for seed in (0, 1) for case in ("new", "old")],
            VERSUS,
            "In each seed a run that is compared diverged",
        ),
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
    runs = [*two_arms([], []), *runs_of([0.6, 0.61], case="new", lr=0.1), *runs_of([0.9, 0.91], case="new", lr=0.3)]
    runs += runs_of([0.5, 0.5], case="old", lr=0.1)
    why = "There is no run with case=old and lr=0.3, which what it is compared with has."
    assert one(runs, **VERSUS).why == why
    assert one([*runs, *runs_of([0.5, 0.5], case="old", lr=0.3)], **VERSUS).why == ""


def test_diverged_runs_are_left_out_of_a_mean_with_their_seeds():
    runs = [*two_arms([0.6, 0.62, 0.9], [0.5, 0.5]), a_run(2, None, status="diverged", case="old")]
    found = one(runs, **VERSUS)
    assert (found.estimate, found.seeds) == (pytest.approx(0.11), 2)
    assert "left out: 1 diverged run, with the runs of the same seeds" in found.rule


@pytest.mark.parametrize(("seeds", "diverged", "verdict"), [(3, 3, "undecidable here"), (4, 4, "holds"), (6, 3, None)])
def test_diverged_runs_are_compared_by_fishers_exact_test(seeds, diverged, verdict):
    runs = [a_run(s, None, status="diverged" if s < diverged else "completed", case="new") for s in range(seeds)]
    found = one([*runs, *runs_of([0.5] * seeds, case="old")], measure="status/diverged", **VERSUS)
    table = [[diverged, seeds - diverged], [0, seeds]]
    assert found.p == pytest.approx(scipy.stats.fisher_exact(table).pvalue)
    assert found.verdict == (verdict or "undecidable here")
    assert found.measured.startswith(f"{diverged} of {seeds} runs diverged against 0 of {seeds}: +")
    assert "Fisher's exact test" in found.rule


def test_a_share_of_diverged_runs_alone_has_its_exact_interval():
    runs = [a_run(seed, None, status="diverged" if seed == 0 else "completed", case="new") for seed in range(12)]
    found = one(runs, {"below": 0.5}, measure="status/diverged")
    interval = scipy.stats.binomtest(1, 12).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.verdict == "holds"
    assert one(runs[:3], {"below": 0.5}, measure="status/diverged").verdict == "undecidable here"


@pytest.mark.parametrize(("seeds", "verdict"), [(3, "undecidable here"), (5, "undecidable here"), (6, "holds")])
def test_a_median_needs_six_seeds(seeds, verdict):
    runs = two_arms([0.6 + 0.01 * seed for seed in range(seeds)], [0.5] * seeds)
    found = one(runs, decided_by="sign_test", **VERSUS)
    assert found.verdict == verdict
    assert found.p == pytest.approx(scipy.stats.binomtest(seeds, seeds).pvalue)
    assert ("takes 6" in found.why) == (seeds < 6)
    if seeds == 6:
        assert (found.low, found.high) == pytest.approx((0.1, 0.15))


def test_infinite_values_have_a_median_alone():
    runs = two_arms([math.inf, *[0.6] * 6], [0.5] * 7)
    found = one(runs, decided_by="sign_test", **VERSUS)
    assert (found.verdict, found.low, found.high) == ("holds", pytest.approx(0.1), math.inf)
    assert "infinite, and a mean needs finite ones" in one(runs, **VERSUS).why
    assert "seed 0 are infinite" in one(two_arms([math.inf] * 2, [math.inf, 0]), decided_by="sign_test", **VERSUS).why


def test_holm_holds_the_error_over_all_claims_together():
    runs = [*two_arms([0.6, 0.63, 0.61, 0.64], [0.5, 0.58, 0.57, 0.5]), *runs_of([0.5, 0.6, 0.5, 0.6], case="other")]
    claim = {"claim": "It helps.", "measure": "test/score", "plus": {"case": "new"}, "holds": {"above": 0}}
    claims = [claim | VERSUS, claim | {"minus": {"case": "other"}}, claim | {"plus": {"case": "missing"}}]
    first, second, third = judge(claims, runs)
    assert first.p < second.p
    assert (first.adjusted_p, second.adjusted_p) == pytest.approx((2 * first.p, max(second.p, 2 * first.p)))
    assert (first.verdict, first.after_holm) == ("holds", "undecidable here")
    assert math.isnan(third.adjusted_p)


def predicted(folder: Path, target: int, classes: np.ndarray) -> None:
    values = {"target": np.full(len(classes), target), "class": classes}
    write_predictions(folder / "predictions.npz", {"test": values})


def crossed(tmp_path: Path, plus: np.ndarray, minus: np.ndarray) -> list[Run]:
    """Runs whose predictions of each test image are right (1) or wrong (0), by seed."""
    runs = []
    for case, rows in (("new", plus), ("old", minus)):
        for seed, row in enumerate(rows):
            run = a_run(seed, float(row.mean()), case=case)
            run = replace(run, folder=tmp_path / run.folder)
            run.folder.mkdir()
            target = np.zeros(len(row), dtype=int)
            write_predictions(
                run.folder / "predictions.npz", {"test": {"target": target, "class": 1 - row.astype(int)}}
            )
            runs.append(run)
    return runs


def test_test_images_are_a_sample_as_seeds_are(tmp_path):
    """Beside the two mean squares of a crossed design, computed cell by cell."""
    generator = np.random.default_rng(6)
    by_image = generator.normal(size=(2, 200))
    plus, minus = ((by_image[i] + 0.2 * generator.normal(size=(5, 200)) > -1).astype(float) for i in (0, 1))
    found = one(crossed(tmp_path, plus, minus), **VERSUS)
    d = plus - minus
    seeds, images = d.mean(1, keepdims=True) - d.mean(), d.mean(0, keepdims=True) - d.mean()
    rest = ((d - d.mean() - seeds - images) ** 2).sum() / (4 * 199)
    of_seeds = max(200 * (seeds**2).sum() / 4, rest)
    of_images = (5 * ((images**2).sum() + 2)) / 199 - rest
    half = math.hypot(2.776445 * math.sqrt(of_seeds / 1000), 1.959964 * math.sqrt(of_images / 1000))
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-5)
    assert found.measured.endswith("5 seeds x 200 images")
    assert "over 5 paired seeds and the test images" in found.rule
    # over seeds alone it would be decided
    assert scipy.stats.ttest_1samp(d.mean(1), 0).pvalue < 0.05
    assert found.verdict == "undecidable here"


def test_runs_on_other_images_are_not_crossed(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2, (3, 50))
    runs = crossed(tmp_path, rows, 1 - rows)
    write_predictions(
        runs[0].folder / "predictions.npz", {"test": {"target": np.ones(50, dtype=int), "class": rows[0]}}
    )
    assert "on one test set" in one(runs, **VERSUS).rule


def grid(scores: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]]) -> list[Run]:
    """Runs by case and learning rate, each with validation and test scores by seed."""
    return [
        a_run(seed, test, validation=validation, case=case, optimizer__lr=lr)
        for (case, lr), (validations, tests) in scores.items()
        for seed, (validation, test) in enumerate(zip(validations, tests, strict=True))
    ]


LRS = {  # of one seed that chooses and two that judge
    ("new", "0.1"): ([0.7, 0.7, 0.7], [0.0, 0.71, 0.73]),
    ("new", "0.3"): ([0.6, 0.9, 0.9], [0.99, 0.99, 0.99]),
    ("old", "0.1"): ([0.6, 0.6, 0.6], [1.0, 0.60, 0.61]),
    ("old", "0.3"): ([0.5, 0.9, 0.9], [0.80, 0.80, 0.80]),
}
BEST = {**VERSUS, "best_over": ["optimizer.lr"]}


def test_some_seeds_choose_the_best_setting_and_the_others_judge_it():
    found = one(grid(LRS), **BEST)
    assert (found.estimate, found.seeds) == (pytest.approx(0.115), 2)
    assert (
        "each arm stands at its best optimizer.lr by validation score in the mean over the pilot's seeds; "
        "chosen were optimizer.lr 0.1 for case=new, optimizer.lr 0.1 for case=old; seed 0 chose, the others judge"
        in found.rule
    )
    more = {key: (validation * 2, test * 2) for key, (validation, test) in LRS.items()}
    assert "seeds 0, 1 chose" in one(grid(more), **BEST).rule
    assert "seeds 0, 1, 2, 3 chose" in one(grid(more), pilot_seeds=4, **BEST).rule
    assert "no other seed is left to judge" in one(grid(LRS), pilot_seeds=3, **BEST).why


def test_arms_that_were_not_chosen_need_no_more_seeds_than_the_pilot():
    runs = [run for run in grid(LRS) if run.seed == 0 or run.settings["optimizer.lr"] == "0.1"]
    assert one(runs, **BEST).estimate == pytest.approx(0.115)


def test_the_smaller_loss_chooses():
    found = one(grid({**LRS, ("new", "0.3"): ([0.8] * 3, [0.9, 0.99, 0.97])}), chosen_by="validation/loss", **BEST)
    assert found.estimate == pytest.approx(0.98 - 0.605)


def test_of_equals_the_smaller_value_is_chosen():
    # as floats the mean of 0.1 and 0.8 is larger than that of 0.2 and 0.7, by the last bit
    scores = {
        ("new", "1e-1"): ([0.1, 0.8, 0, 0], [0.1] * 4),
        ("new", "0.03"): ([0.2, 0.7, 0, 0], [0.3] * 4),
    }
    for order in (scores, dict(reversed(scores.items()))):
        assert one(grid(order), best_over="optimizer.lr", pilot_seeds=2).estimate == pytest.approx(0.3)


def test_the_value_with_fewer_diverged_runs_is_chosen_and_the_others_do_not_matter():
    more = {key: (validation * 2, test * 2) for key, (validation, test) in LRS.items()}
    runs = grid(more)
    runs += [
        a_run(seed, 0.9, validation=0.99, case=case, optimizer__lr=1) for case in ("new", "old") for seed in (0, 2)
    ]
    runs += [a_run(1, None, status="diverged", case=case, optimizer__lr=1) for case in ("new", "old")]
    found = one(runs, pilot_seeds=2, **BEST)
    assert "optimizer.lr 0.3 for case=new" in found.rule
    assert "diverged" not in found.rule


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


MOVES = {"measure": "setting/agc.clip", "transform": "log2", "best_over": ["agc.clip"], "slope_over": "size"}


def choices(best: Mapping[tuple[int, int], float], gain: float = 0.4) -> list[Run]:
    """Runs by size, seed and clip, of which the one with the best clip is better by `gain`."""
    return [
        a_run(seed, validation=0.5 + gain * (clip == chosen), case="new", size=size, agc__clip=clip)
        for (size, seed), chosen in best.items()
        for clip in (0.01, 0.02, 0.04)
    ]


def test_how_the_best_setting_moves_is_a_slope_of_the_choice_of_each_seed():
    # from log2 0.01 to log2 0.04 over two doublings, and in one seed not at all
    best = {(size, seed): clip for seed in range(7) for size, clip in ((256, 0.01), (1024, 0.04))}
    found = one(choices({**best, (256, 0): 0.02, (1024, 0): 0.02}), {"above": 0.5}, **MOVES)
    assert (found.low, found.high, found.estimate) == pytest.approx((0.0, 1.0, 1.0))
    assert found.verdict == "undecidable here"
    assert "at its best agc.clip by validation score seed by seed" in found.rule
    assert one(choices(best), {"above": 0.5}, **MOVES).verdict == "holds"
    assert one(choices(best), {"below": 0.5}, **MOVES).verdict == "does not hold"


def test_a_choice_among_equals_is_none():
    """Of equals the smallest value is taken, in every seed: a slope of exactly 0, which says nothing."""
    best = {(size, seed): 0.01 for seed in range(8) for size in (256, 1024)}
    found = one(choices(best, gain=0.0), {"below": -0.25}, **MOVES)
    assert (found.estimate, found.verdict) == (0.0, "undecidable here")
    assert "no more than by chance (permutation test, p = 1.00)" in found.why
    generator = np.random.default_rng(1)
    noise = [
        replace(run, summary={**run.summary, "best": {"accuracy": generator.normal()}})
        for run in choices(best, gain=0.0)
    ]
    assert one(noise, {"below": -0.25}, **MOVES).verdict == "undecidable here"


def test_sources_are_joined():
    claim = {"claim": "A", "measure": "test/score", "plus": {"case": "new"}, "holds": {"above": 0}, "published": 0.5}
    [verdict] = judge([{**claim, "source": "figure 5"}], [], source="Bjorck et al.")
    assert (verdict.source, verdict.published) == ("Bjorck et al., figure 5", "0.5")
    assert judge([claim], [])[0].source == ""


def test_claims_of_earlier_sweeps_are_still_judged():
    runs = two_arms([0.6 + 0.01 * seed for seed in range(6)], [0.5] * 6)
    assert one(runs, decided_by="every_seed", when_diverged=0.1, **VERSUS).verdict == "holds"
    assert one(runs, {"below": 0.5}, measure="status/diverged", decided_by="every_seed").verdict == "holds"
