from __future__ import annotations

import math

import pytest
import scipy.special
import scipy.stats
import yaml

from runner.results.arms import ABSENT, arms_of, best_arms, common_overrides, spread
from runner.results.runs import SweepRecord, read_runs


def grouped(tmp_path, sweep=None):
    return arms_of(read_runs([tmp_path / "sweep"]), sweep)


def test_runs_that_differ_in_their_seed_alone_are_one_arm(make_run, tmp_path):
    values = {0: 0.91, 1: 0.94, 2: 0.92}
    for clip in ("0.02", "0.005"):
        for seed, accuracy in values.items():
            make_run("norm=agc", f"agc.clip={clip}", f"seed={seed}", f"name=job{seed}", accuracy=accuracy)
    axes, arms = grouped(tmp_path)
    assert [(axis.key, axis.name, axis.values) for axis in axes] == [("agc.clip", "clip", ("0.005", "0.02"))]
    assert [arm.label for arm in arms] == ["clip=0.005", "clip=0.02"]
    found = arms[0].spread("validation/score")
    assert found.values == (0.91, 0.94, 0.92)
    error = scipy.stats.sem([0.91, 0.94, 0.92]) / (0.92333333 * 0.07666667)  # on the logit scale
    ends = scipy.stats.t(2, loc=scipy.special.logit(0.92333333), scale=error).interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(scipy.special.expit(ends)))
    assert found.deviation == pytest.approx(0.0152753, rel=1e-4)


def test_a_repetition_of_a_seed_is_no_new_sample(make_run, tmp_path):
    make_run("seed=0", "name=a", accuracy=0.90)
    make_run("seed=0", "name=b", accuracy=0.92)
    make_run("seed=1", accuracy=0.95)
    [arm] = grouped(tmp_path)[1]
    assert (len(arm.runs), arm.seeds) == (3, 2)
    assert arm.spread("validation/score").values == pytest.approx((0.91, 0.95))


def test_diverged_and_failed_runs_are_in_their_arm_without_a_value(make_run, tmp_path):
    make_run("case=a", "seed=0", accuracy=0.9)
    make_run("case=a", "seed=1", accuracy=0.8, status="diverged")
    make_run("case=b", "seed=0", status="failed", error="no memory")
    a, b = grouped(tmp_path)[1]
    assert (a.spread("test/score").values, a.count("diverged"), a.seeds) == ((0.9,), 1, 2)
    assert math.isnan(a.spread("test/score").deviation)
    assert math.isnan(b.spread("test/score").mean)
    shares = a.spread("status/diverged")
    assert shares.mean == 0.5
    assert math.isnan(shares.low)  # a yes or no has no t interval


def test_a_setting_that_is_not_overridden_is_that_of_the_config(make_run, tmp_path):
    make_run("train.epochs=3", "norm=a")
    make_run("norm=b")
    make_run("norm=agc", "agc.clip=0.1")
    axes, arms = grouped(tmp_path)
    # all three trained for 3 epochs; the clip is that of one run, and no setting of the others
    assert {axis.key: set(axis.values) for axis in axes} == {
        "norm": {"a", "b", "agc"},
        "agc.clip": {"0.1", ABSENT},
    }
    assert {arm.label for arm in arms} == {"a", "b", "agc, clip=0.1"}
    assert axes[1].title(ABSENT) == "-"


def test_the_sweep_gives_order_and_names_and_values_may_be_written_otherwise(make_run, tmp_path):
    for value in ("0.10", "0.2"):
        for case in ("[none]", "batchnorm"):
            make_run(f"case={case}", f"optimizer.lr={value}")
    sweep = SweepRecord(
        axes={"case": ["none", "batchnorm", "never run"], "optimizer.lr": ["2e-1", "1e-1"], "seed": ["0"]},
        names={"case": {"none": "no batch norm"}},
    )
    axes, arms = grouped(tmp_path, sweep)
    assert [axis.values for axis in axes] == [("none", "batchnorm"), ("2e-1", "1e-1")]
    assert [arm.label for arm in arms] == [
        "no batch norm, lr=2e-1",
        "no batch norm, lr=1e-1",
        "batchnorm, lr=2e-1",
        "batchnorm, lr=1e-1",
    ]
    assert all(len(arm.runs) == 1 for arm in arms)


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["16", "32", "1e3"], {}, [16, 32, 1000]),
        (["16", "32", "null"], {}, [16, 32]),
        (["16", "32", "small"], {}, []),
        (["16", "null"], {}, []),
        (["true", "false"], {}, []),
        (["0", "1"], {"0": "off", "1": "on"}, []),
    ],
)
def test_an_axis_is_numeric_if_its_values_are_numbers_without_names(make_run, tmp_path, values, names, numbers):
    for value in values:
        make_run(f"x={value}")
    [axis], _ = grouped(tmp_path, SweepRecord(names={"x": names}))
    assert list(axis.numbers.values()) == numbers


def test_unreadable_runs_belong_to_their_arm_if_they_wrote_their_overrides(make_run, tmp_path):
    make_run("case=a")
    folder = make_run("case=b")
    (folder / "summary.json").unlink()
    (folder / "overrides.yaml").write_text(yaml.safe_dump(["case=b"]))
    (make_run("case=c") / "summary.json").unlink()
    assert [arm.label for arm in grouped(tmp_path)[1]] == ["a", "b"]


def test_the_best_arms_keep_their_order(make_run, tmp_path):
    for case, accuracy in (("a", 0.7), ("b", None), ("c", 0.9), ("d", 0.8)):
        make_run(f"case={case}", accuracy=accuracy)
    arms = grouped(tmp_path)[1]
    assert [arm.label for arm in best_arms(arms, "validation/score", 2)] == ["c", "d"]
    assert [arm.label for arm in best_arms(arms, "validation/score", 3)] == ["a", "c", "d"]


def test_the_spread_of_values_that_lie_unevenly():
    """Where the mean is not the median."""
    found = spread([0.1, 0.2, 0.6])
    assert (found.mean, found.deviation) == (pytest.approx(0.3), pytest.approx(math.sqrt(0.14 / 2)))


def test_spread_of_what_is_not_finite():
    assert math.isinf(spread([1.0, math.inf]).mean)
    assert math.isnan(spread([1.0, math.inf]).deviation)
    assert math.isnan(spread([]).mean)
    assert spread([3.0]).mean == 3.0


def test_common_overrides(make_run, tmp_path):
    make_run("a=1", "b=2")
    assert common_overrides(read_runs([tmp_path / "sweep"])) == []
    make_run("b=2", "a=3")
    assert common_overrides(read_runs([tmp_path / "sweep"])) == ["b=2"]
