"""How many seeds a claim needs, beside the power of the noncentral t distribution."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from runner.claims.needed_seeds import needed_seeds
from runner.claims.sequential import SequentialMean
from tests.claims.test_verdict import VERSUS, a_run, runs_of, two_arms

CLAIM = {"claim": "It helps.", "measure": "test/loss", "plus": {"case": "new"}, "holds": {"above": 0}}
PILOT = [0.03, 0.01, 0.02, 0.0]  # mean 0.015, deviation 0.01291


def of(runs, **claim):
    return needed_seeds(CLAIM | claim, 1, runs)


def losses(values):
    runs = two_arms([0.5] * len(values), [0.5] * len(values))
    for run, value in zip(runs, [1 + value for value in values] + [1.0] * len(values), strict=True):
        run.summary["metrics"] = {"loss": value, "accuracy": 0.5}
    return runs


@pytest.mark.parametrize(
    ("about", "effect"), [({}, 0.015), ({"expected": 0.02}, 0.02), ({"holds": {"above": 0.005}}, 0.01)]
)
def test_so_many_seeds_have_a_power_of_80_percent(about, effect):
    need = of(losses(PILOT), **VERSUS, **about)

    def power(seeds):
        critical = SequentialMean(0, seeds, 1).critical(0.05)
        return scipy.stats.nct.sf(critical, seeds - 1, effect / 0.0129099 * math.sqrt(seeds))

    assert power(need.seeds - 1) < 0.8 <= power(need.seeds)
    assert need.there == 4


def test_an_equivalence_supposes_the_middle_of_its_range():
    need = of(losses(PILOT), holds={"within": [-0.02, 0.02]}, **VERSUS)
    assert need.supposed == "the middle of the range, 0"
    assert need.seeds == of(losses(PILOT), holds={"above": -0.02}, expected=0.0, **VERSUS).seeds


def test_what_nothing_tells_is_not_known():
    assert math.isinf(of(losses(PILOT), holds={"above": 0.015}, **VERSUS).seeds)
    assert math.isnan(of(losses(PILOT[:1]), **VERSUS).seeds)
    assert math.isnan(of([], **VERSUS).seeds)


def test_medians_and_shares_repeat_their_seeds():
    assert of(losses([0.1, 0.2, 0.3, 0.4]), decided_by="sign_test", **VERSUS).seeds == 7
    diverged = [a_run(seed, None, status="diverged", case="new") for seed in range(2)]
    share = of([*diverged, *runs_of([0.5] * 2, case="old")], measure="status/diverged", **VERSUS)
    assert (share.seeds, share.there, share.supposed) == (4, 2, "more seeds like these")
