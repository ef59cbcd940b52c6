from __future__ import annotations

import pytest
import yaml

from runner.claims.claim import Threshold, parse_claim
from runner.claims.verdict import check_claims
from runner.config.text import SettingError

AXES = {
    "case": ["none", "batchnorm"],
    "optimizer.lr": ["0.1", "1e-2"],
    "train.global_batch_size": ["256", "1024"],
    "train.compile": ["true", "false"],
    "train.ema": ["0"],
    "agc.clip": ["0", "0.01"],
    "seed": ["0", "1"],
}
GOOD = {"claim": "Deep nets need it.", "measure": "test/score", "plus": {"case": "none"}, "holds": {"above": 0.01}}


def check(**changes: object) -> None:
    check_claims([{key: value for key, value in {**GOOD, **changes}.items() if value is not ...}], AXES)


def test_a_claim_as_yaml_writes_it():
    written = """
    claim: Without batch norm the deviation grows.
    source: figure 5
    published: +0.05
    measure: probe/activation_statistics/slope_log10_std
    transform: log10
    plus: [{case: none, train.global_batch_size: [256, 1024.0]}, {case: none, train.compile: true}]
    minus: {case: batchnorm}
    factor: 5e-1
    best_over: optimizer.lr
    chosen_by: validation/loss
    holds: {within: [1e-3, 2]}
    decided_by: sign_test
    pilot_seeds: 2
    """
    mapping = yaml.safe_load(written)
    check_claims([mapping], AXES)
    claim = parse_claim(mapping)
    assert claim.plus[0] == {"case": ("none",), "train.global_batch_size": ("256", "1024.0")}
    assert claim.plus[1] == {"case": ("none",), "train.compile": ("true",)}
    assert (claim.factor, claim.best_over, claim.holds) == (0.5, ("optimizer.lr",), Threshold("within", (0.001, 2.0)))
    assert (claim.published, claim.slope_over, claim.combine) == ("0.05", None, "difference")


def test_values_are_compared_as_settings_not_as_text():
    check(plus={"optimizer.lr": 0.01, "case": "[none]", "train.compile": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({"claim": ...}, "entry 1: claim=None: .* in words"), ({"measure": ...}, "measure is missing")],
        *[({"plus": None}, "plus is missing"), ({"holds": ...}, "holds is missing")],
        *[({"plsu": 1}, "plsu=1: .* Did you mean plus"), ({"measure": "test/acc"}, "measure=test/acc: no run has")],
        *[({"transform": "ln"}, "transform=ln: it must be log10 or log2"), ({"combine": 2}, "difference or ratio")],
        *[({"decided_by": []}, "interval or sign_test"), ({"published": [1]}, r"published=\[1\]: it must be text")],
        *[({"factor": "half"}, "factor=half: it must be a number"), ({"factor": 0}, "other than 0")],
        *[({"best_over": ["optimizer.lr"], "pilot_seeds": n}, "pilot_seeds=.*above 0") for n in (0, 1.5, True)],
        # what decides
        *[({"holds": 0.1}, "holds=0.1: it must be one of"), ({"holds": {"over": 1}}, "one of {above")],
        *[({"holds": {"above": 1, "below": 2}}, "one of {above"), ({"holds": {"above": [1, 2]}}, "one of {above")],
        *[({"holds": {"within": 1}}, "one of {above"), ({"holds": {"within": [1]}}, "one of {above")],
        *[({"holds": {"within": [2, 1]}}, r"holds.within=\[2,1\]: the first"), ({"holds": {"above": "x"}}, "above=x")],
        # which runs
        *[({"plus": "none"}, "plus=none: it must be a mapping"), ({"plus": []}, "it must be a mapping")],
        *[({"plus": {"case": []}}, r"plus.case=\[\]: "), ({"plus": {"seed": 0}}, "seeds are repetitions")],
        *[({"plus": {"csae": "none"}}, "plus=csae: this key is not swept. Did you mean case")],
        *[({"plus": {"case": "nnoe"}}, "plus.case=nnoe: swept are none, batchnorm")],
        *[({"minus": {"case": ["none", "batchnorm"]}}, "runs in common"), ({"minus": {"optimizer.lr": 0.1}}, "common")],
        # ratios
        *[({"combine": "ratio"}, "combine=ratio: .* add minus")],
        ({"combine": "ratio", "minus": {"case": "batchnorm"}, "transform": "log2"}, "leave out transform"),
        ({"combine": "ratio", "minus": {"case": "batchnorm"}, "factor": 2}, "leave out factor"),
        ({"combine": "ratio", "minus": {"case": "batchnorm"}, "holds": {"above": 0}}, "numbers above 0"),
        # choosing, slopes
        *[({"chosen_by": "validation/loss"}, "add best_over"), ({"slope_scale": "linear"}, "add slope_over")],
        *[({"pilot_seeds": 2}, "pilot_seeds=2: .* add best_over")],
        *[({"best_over": ["optimizer.lr"], "chosen_by": "test/score"}, "nothing is chosen on the test split")],
        *[({"best_over": ["optimizer.lr"], "chosen_by": "last/loss"}, "nothing is chosen on the test split")],
        *[({"best_over": ["lr"]}, "best_over=lr: this key is not swept"), ({"best_over": [1]}, r"best_over=\[1\]")],
        *[({"best_over": ["seed"]}, "seeds are repetitions"), ({"slope_over": "seed"}, "seeds are repetitions")],
        *[({"slope_over": "case"}, "its value none is not a number"), ({"slope_over": "train.ema"}, "two values")],
        *[({"slope_over": "agc.clip"}, "slope_scale: linear"), ({"slope_over": ["agc.clip"]}, "one swept key")],
        *[({"best_over": "optimizer.lr", "slope_over": "optimizer.lr"}, "cannot be chosen and give the slope")],
        *[({"measure": "setting/case"}, "its value none is not a number"), ({"measure": "setting/lr"}, "not swept")],
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(changes, message):
    with pytest.raises(SettingError, match=message) as caught:
        check(**changes)
    assert GOOD["claim"] in str(caught.value) or "entry 1" in str(caught.value)


def test_the_entry_that_is_wrong_is_named():
    with pytest.raises(SettingError, match="entry 2=it grows: it must be a mapping"):
        check_claims([GOOD, "it grows"], AXES)


@pytest.mark.parametrize(
    ("threshold", "inside", "outside"),
    [
        (Threshold("above", (1.0,)), [1.1, float("inf")], [1.0, 0.9]),
        (Threshold("below", (1.0,)), [0.9, -float("inf")], [1.0, 1.1]),
        (Threshold("within", (1.0, 2.0)), [1.0, 2.0, 1.5], [0.9, 2.1, float("nan")]),
    ],
)
def test_bounds_belong_to_a_range_and_not_to_above_or_below(threshold, inside, outside):
    assert all(value in threshold for value in inside)
    assert not any(value in threshold for value in outside)
    assert all(threshold.excludes(value, value) == (value not in threshold) for value in [*inside, *outside[:2]])
    assert not threshold.excludes(*sorted((inside[0], outside[0])))


@pytest.mark.parametrize("key", ["transform", "combine", "factor", "best_over", "slope_over", "decided_by"])
def test_shares_of_diverged_runs_are_compared_as_they_are(key):
    words = {"transform": "log2", "combine": "difference", "factor": 2, "decided_by": "interval"}
    check(measure="status/diverged", holds={"above": 0.5})
    with pytest.raises(SettingError, match=rf"{key}=.*status/diverged compares shares of runs.*leave out {key}"):
        check(measure="status/diverged", holds={"above": 0.5}, **{key: words.get(key, "optimizer.lr")})


@pytest.mark.parametrize("written", [{"when_diverged": 0.1}, {"decided_by": "every_seed"}])
def test_what_claims_had_before_is_refused_with_what_took_its_place(written):
    with pytest.raises(SettingError, match=r"(when_diverged: .*status/diverged|every_seed: .*sign_test)"):
        check(**written)
