"""The test after training: of best.pt, and of the last weights where they are others."""

import json

import pytest

from runner.experiment import testing
from runner.training.top_k import TopKCheckpoints


@pytest.fixture
def evaluations(monkeypatch):
    """The evaluations on the test split, as they are made."""
    made, evaluate = [], testing.evaluate
    monkeypatch.setattr(testing, "evaluate", lambda *args, **kept: made.append(evaluate(*args, **kept)) or made[-1])
    return made


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.ema=0.9",),
        ("regularization=stochastic_depth", "model=resnet20"),
        ("norm=weight_standardization",),
        ("train.max_steps=3", "train.epochs=2"),  # within an epoch
    ],
)
def test_weights_that_are_both_best_and_last_are_tested_once(small, tmp_path, monkeypatch, evaluations, overrides):
    assert small("train.epochs=1", *overrides, "name=once").code == 0
    assert len(evaluations) == 1
    monkeypatch.setattr(testing, "_are_in", lambda *_: False)
    assert small("train.epochs=1", *overrides, "name=twice").code == 0
    assert len(evaluations) == 3
    once, twice = (
        json.loads((tmp_path / f"outputs/runs/{name}/summary.json").read_text()) for name in ("once", "twice")
    )
    for key in ("metrics", "last", "accuracy_by_class"):
        assert once[key] == twice[key]


def test_the_last_weights_are_tested_beside_the_best_ones(small, tmp_path, monkeypatch, evaluations):
    monkeypatch.setattr(
        TopKCheckpoints, "_rank", lambda self, metrics: (-metrics["epoch"], 0.0)
    )  # the first epoch is the best
    assert small("train.epochs=2", "name=run").code == 0
    assert len(evaluations) == 2
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert [summary["last"], summary["metrics"]] == [evaluation.metrics for evaluation in evaluations]
    assert summary["last"] != summary["metrics"]
