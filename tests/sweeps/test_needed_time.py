"""What `runner plan` says of a study's claims: seeds, time and budget."""

from __future__ import annotations

import pytest
import yaml

from runner.sweeps.decision import Decision
from runner.sweeps.needed_time import needs
from tests.claims.test_needed_seeds import CLAIM, PILOT, losses
from tests.claims.test_verdict import VERSUS

EXPECTS = CLAIM | VERSUS | {"expected": 0.025}


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """`lines(claims, budget)` of a study with 4 seeds, whose runs took 10 seconds each, 80 in all."""

    def call(claims, budget, runs=None, seeds=30):
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"claims": claims, "decide": True}))
        decision = Decision(tmp_path, frozenset(), tuple(range(seeds)), budget)
        monkeypatch.setattr(Decision, "runs", lambda decision: losses(PILOT) if runs is None else runs)
        monkeypatch.setattr(Decision, "_span", lambda decision, run: (start := 10 * hash(run.folder), start + 10))
        monkeypatch.setattr(Decision, "spent", lambda decision, runs=None: 80.0)
        return needs(decision)

    return call


def test_each_claim_has_its_seeds_and_its_time(lines):
    head, claim, budget = lines([EXPECTS], "1h")
    seeds = int(claim.partition(" seeds")[0].removeprefix("1. "))
    minutes, seconds = divmod(20 * (seeds - 4), 60)  # two arms, 10 s each
    assert head == "What the claims need, with a power of 80 %:"
    assert claim == (f"1. {seeds} seeds (4 are there), for the expected 0.025, {minutes}:{seconds:02d} more: It helps.")
    assert budget == f"The budget suffices: {minutes}:{seconds:02d} for 1 claim, 58:40 left of 1h."


def test_a_budget_that_does_not_suffice_is_named_with_one_that_does(lines):
    *_, budget = lines([EXPECTS], "90s")
    assert "The budget does not suffice: " in budget
    assert ", 0:10 left of 90s. It takes sweep.budget=" in budget


def test_a_claim_that_takes_more_seeds_than_there_may_be_is_named(lines):
    _, claim, count = lines([CLAIM | VERSUS | {"expected": 0.003}], "1h")
    assert "more than sweep.max_seeds=30" in claim
    assert count == "1 of 1 claims will not be decided by 30 seeds."


def test_claims_that_are_decided_need_nothing(lines):
    _, claim, end = lines([CLAIM | VERSUS | {"holds": {"above": -1}}], "1h")
    assert claim.startswith("1. holds, ")
    assert end == "Every claim is decided."
    assert lines([EXPECTS], "1h", runs=[]) == ["What the claims need shows when the first seeds have run."]
