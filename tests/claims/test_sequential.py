"""Verdicts while seeds come in, beside closed forms, numerical integrals and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from runner.claims import sequential
from runner.claims.sequential import (
    SequentialMean,
    SequentialMedian,
    SequentialShare,
    SequentialShareDifference,
    chance_of_winners,
)
from runner.claims.verdict import judge
from runner.results.proportions import Share
from tests.claims.test_verdict import VERSUS, a_run, grid, runs_of, two_arms

CLAIM = {"claim": "It helps.", "measure": "test/score", "plus": {"case": "new"}, "holds": {"above": 0}}


def one(runs, **claim):
    [verdict] = judge([CLAIM | claim], runs, sequential=True)
    return verdict


@pytest.mark.parametrize("seeds", [4, 7, 30])
@pytest.mark.parametrize("level", [0.05, 0.02])
def test_the_interval_of_a_mean_ends_where_the_likelihood_ratio_of_t_is_one_over_the_level(seeds, level):
    """The ratio integrated numerically: noncentral t over the prior N(0, 9) of the effect, to central t."""
    t = SequentialMean(0.0, seeds, 1.0).critical(level)
    # for an effect d the noncentrality is d sqrt(n); t given N(0, 9) on d
    density = scipy.integrate.quad(
        lambda d: scipy.stats.nct.pdf(t, seeds - 1, d * math.sqrt(seeds)) * scipy.stats.norm.pdf(d, scale=3),
        *(-20, 20),
        points=[0, t / math.sqrt(seeds)],
        limit=200,
    )[0]
    assert density / scipy.stats.t.pdf(t, seeds - 1) == pytest.approx(1 / level, rel=1e-3)


def test_a_median_takes_seven_seeds():
    for seeds in range(4, 12):
        # of fair coins that all fall on one side against Beta(1/2, 1/2): C(2n, n) / 2^n
        p = SequentialMedian(tuple(range(1, seeds + 1))).p_value(0)
        assert p == pytest.approx(min(1, 2**seeds / math.comb(2 * seeds, seeds)))
        low, high = SequentialMedian(tuple(range(1, seeds + 1))).interval()
        assert math.isinf(low) == (seeds < sequential.FEWEST_FOR_MEDIAN)
        assert (low, high) != (1, seeds) or p <= 0.05


def test_the_interval_of_a_share_has_the_level_at_its_ends():
    for count, number in ((0, 9), (3, 9), (9, 9)):
        low, high = SequentialShare(count, number).interval(0.05)
        for end in {low, high} - {0.0, 1.0}:
            of_prior = scipy.stats.betabinom.pmf(count, number, 0.5, 0.5)
            assert of_prior / scipy.stats.binom.pmf(count, number, end) == pytest.approx(20, rel=1e-6)
        assert low <= count / number <= high


def test_shares_that_differ_wholly_are_told_apart_at_the_first_look():
    # bets: 1, then (1.18 / 1.36)^2 / 0.25, (2.18 / 2.36)^2 / 0.25, (3.18 / 3.36)^2 / 0.25
    bets = [((k + 0.18) / (k + 0.36)) ** 2 / 0.25 for k in (1, 2, 3)]
    found = SequentialShareDifference(Share(4, 4), Share(0, 4), ((1, 1, 0, 1),) * 4)
    assert found.p_value(0) == pytest.approx(1 / math.prod(bets))
    assert found.p_value(0) < 0.05 < SequentialShareDifference(Share(3, 3), Share(0, 3), ((1, 1, 0, 1),) * 3).p_value(0)


def test_each_bet_has_an_expected_value_of_one_at_most():
    """Over all outcomes of a seed after a history, with equal shares; so far on that p is never cut at 1."""
    history = ((2, 2, 0, 1),) * 12
    before = 1 / SequentialShareDifference(Share(24, 24), Share(0, 12), history).p_value(0)
    for share in (0.1, 0.5, 0.8, 2 / 3):
        total = 0.0
        for k1, k2 in np.ndindex(3, 2):
            after = SequentialShareDifference(Share(24, 26), Share(0, 13), (*history, (k1, 2, k2, 1)))
            probability = scipy.stats.binom.pmf(k1, 2, share) * scipy.stats.binom.pmf(k2, 1, share)
            assert after.p_value(0) < 1
            total += probability / after.p_value(0)
        assert total / before <= 1 + 1e-9


def test_winners_that_stay_the_same_are_no_chance():
    rows = np.array([[1, 2, 3]] * 4)
    # 3 times (1/2 + i) / (3/2 + i) for the seed i
    e = math.prod(3 * (0.5 + i) / (1.5 + i) for i in range(4))
    assert chance_of_winners([rows]) == pytest.approx(1 / e)
    assert e > 6
    assert chance_of_winners([rows, rows]) == pytest.approx(1 / e**2)
    assert chance_of_winners([np.array([[2, 2, 2]] * 9)]) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["mean", "median", "shares", "winners"])
def test_no_more_than_one_study_in_twenty_errs_at_any_of_its_looks(kind):
    generator, studies, wrong = np.random.default_rng(4), 300, 0
    for _ in range(studies):
        if kind == "mean":
            values = generator.normal(size=20)
            found = [SequentialMean(values[:n].mean(), n, scipy.stats.sem(values[:n])) for n in range(4, 21)]
            wrong += any(low > 0 or high < 0 for low, high in (each.interval() for each in found))
        elif kind == "median":
            values = generator.normal(size=20)
            wrong += any(SequentialMedian(tuple(values[:n])).p_value(0) <= 0.05 for n in range(4, 21))
        elif kind == "shares":
            rows = [(int(a), 1, int(b), 1) for a, b in generator.random((20, 2)) < 0.4]
            found = (SequentialShareDifference(Share(0, 1), Share(0, 1), tuple(rows[:n])) for n in range(4, 21))
            wrong += any(each.p_value(0) <= 0.05 for each in found)
        else:
            ranks = generator.permuted(np.broadcast_to([1, 2, 3, 4], (20, 4)), axis=1)
            wrong += any(chance_of_winners([ranks[:n]]) <= 0.05 for n in range(4, 21))
    assert wrong <= 0.05 * studies + 2 * math.sqrt(0.05 * 0.95 * studies)


SPREAD = [0.31, 0.29, 0.30, 0.32, -0.9, 0.3]


def test_a_claim_stands_as_the_first_look_that_decided_it_says():
    found = one(two_arms([0.5 + each / 10 for each in SPREAD], [0.5] * 6), **VERSUS)
    assert (found.verdict, found.seeds, found.lacking) == ("holds", 4, ())
    assert [look.seeds for look in found.looks] == [4, 5, 6]
    assert found.looks[2].low < 0 < found.low  # the fifth seed came too late to change it
    assert found.estimate == pytest.approx(0.0305)
    half = SequentialMean(0, 4, 1).critical(0.05) * scipy.stats.sem(np.array(SPREAD[:4]) / 10)
    assert (found.low, found.high) == pytest.approx((0.0305 - half, 0.0305 + half))
    assert "95 % interval that holds at all looks together (look 1) over 4 paired seeds" in found.rule
    assert "as wide as a t interval of 99.28 %" in found.rule


def test_three_seeds_are_no_look_and_the_arms_lack_more():
    found = one(two_arms([0.9, 0.91, 0.92], [0.5] * 3), **VERSUS)
    assert (found.verdict, found.looks) == ("undecidable here", ())
    assert found.why == "The first look is at 4 seeds that judge, and there are 3."
    assert [dict(arm) for arm in found.lacking] == [{"case": "new"}, {"case": "old"}]


def test_the_same_runs_give_the_same_path_whatever_is_still_at_work():
    runs = two_arms([0.51, 0.49, 0.52, 0.50, 0.53], [0.5] * 4)
    runs.append(a_run(5, 0.9, case="old"))  # seed 4 of this arm is at work: seed 5 waits for it
    runs.append(a_run(4, None, status="running", case="old"))
    found = one([*runs, a_run(5, 0.9, case="new")], **VERSUS)
    assert [look.seeds for look in found.looks] == [4]
    assert found.lacking


def test_a_failed_run_is_no_reason_for_more_seeds():
    found = one([*two_arms([0.6] * 5, [0.5] * 4), a_run(4, status="failed", case="old")], **VERSUS)
    assert "did not come to an end" in found.why
    assert found.lacking == ()


def test_no_number_of_seeds_makes_an_infinite_mean_finite():
    found = one(two_arms([0.6] * 4 + [math.inf], [0.5] * 5), **VERSUS)
    assert "a mean needs finite ones" in found.why
    assert found.lacking == ()


def test_two_seeds_choose_and_the_others_judge_the_chosen_alone():
    scores = {
        ("new", "0.1"): ([0.7, 0.8, 0.1, 0.1], [0.9, 0.9, 0.71, 0.72]),
        ("new", "0.3"): ([0.6, 0.6, 0.9, 0.9], [0.99, 0.99, 0.99, 0.99]),
        ("old", "0.1"): ([0.6] * 4, [0.6] * 4),
        ("old", "0.3"): ([0.5] * 4, [0.6] * 4),
    }
    found = one(grid(scores), best_over=["optimizer.lr"], **VERSUS)
    assert found.why == "The first look is at 4 seeds that judge, and there are 2."
    assert [arm["optimizer.lr"] for arm in found.lacking] == [0.1, 0.1]
    assert "seeds 0, 1 chose" in found.rule


def test_diverged_runs_are_compared_at_each_look():
    runs = [a_run(seed, None, status="diverged", case="new") for seed in range(4)]
    found = one([*runs, *runs_of([0.5] * 4, case="old")], measure="status/diverged", **VERSUS)
    assert (found.verdict, found.seeds) == ("holds", 4)
    assert found.rule == (
        "The difference of the shares must lie above 0 percentage points by a test of equal shares that holds at all "
        "looks together (look 1): an e-value of at least 20."
    )
    alone = one(runs, measure="status/diverged", holds={"above": 0.5})
    assert (alone.verdict, len(alone.lacking)) == ("undecidable here", 1)


def test_a_median_is_decided_by_seven_seeds_on_one_side():
    runs = two_arms([0.6 + 0.01 * seed for seed in range(8)], [0.5] * 8)
    found = one(runs, decided_by="sign_test", **VERSUS)
    assert (found.verdict, found.seeds) == ("holds", 7)
    assert "takes 7" in one(runs[:6] + runs[8:14], decided_by="sign_test", **VERSUS).why
