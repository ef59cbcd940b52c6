"""The test after training: of best.pt, and of the last weights where they are others."""

import json
from types import SimpleNamespace

import pytest

from runner.experiment import testing
from runner.tracking.console import RunConsole
from runner.training import evaluation
from runner.training.evaluation import shown
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


def test_a_validation_is_shown_once_it_takes_long(small, monkeypatch):
    calls = []
    monkeypatch.setattr(RunConsole, "evaluation", lambda _, *call: calls.append(call))
    assert small("train.epochs=1", "name=short").code == 0
    assert {what for what, *_ in calls} == {"test of the last weights"}
    monkeypatch.setattr("runner.training.loop.QUIET_SECONDS", 0.0)
    assert small("train.epochs=1", "name=long").code == 0
    of_validation = [numbers for what, *numbers in calls if what == "validation"]
    assert of_validation[0][0] == 0
    assert of_validation[-1][0] == of_validation[-1][1] > 0


def test_what_is_shown_of_an_evaluation_begins_after_its_seconds(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    tracker = SimpleNamespace(evaluation=lambda *call: calls.append(call))
    batches = [(None, [0] * 4)] * 5
    for batch in shown(batches, "validation", 18, tracker, after_seconds=1.0):
        assert batch is batches[0]
        clock[0] += 0.4
    assert calls == [("validation", images, 18) for images in (12, 16, 18)]
