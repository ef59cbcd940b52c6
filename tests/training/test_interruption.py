"""A signal while the loop waits or measures: a checkpoint from which the run goes on to the same bits."""

import functools
import importlib
import json
import os
import signal
import time

import pytest
import torch
from matplotlib.figure import Figure

from runner.distributed import signals
from runner.results.metrics import read_rows
from runner.training.checkpoint import load_checkpoint
from runner.training.step import OptimizerStep
from runner.training.tasks import Classification

SETTINGS = ("train.epochs=3", "train.log_every_steps=1", "regularization=dropout", "dropout.rate=0.3")
TIMINGS = ("images_per_second", "seconds")


def send(*_):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def goes_on(small, tmp_path, monkeypatch):
    """`goes_on(disturb, settings)`: a run that `disturb(monkeypatch)` has interrupted ends as one that was not."""

    def call(disturb, *settings):
        assert small(*SETTINGS, *settings, "name=whole").code == 0
        with monkeypatch.context() as patch:
            disturb(patch)
            outcome = small(*SETTINGS, *settings, "name=parts")
        assert outcome.code == 130, outcome.out + outcome.err
        assert "python -m runner resume=outputs/runs/parts" in outcome.out
        folders = [tmp_path / "outputs/runs" / name for name in ("whole", "parts")]
        assert json.loads((folders[1] / "summary.json").read_text())["status"] == "interrupted"
        progress = load_checkpoint(folders[1] / "checkpoints/last.pt")["progress"]
        assert small("resume=outputs/runs/parts").code == 0
        whole, parts = (load_checkpoint(folder / "checkpoints/last.pt")["model"] for folder in folders)
        assert all(torch.equal(value, parts[name]) for name, value in whole.items())
        whole, parts = (
            [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_rows(file)]
            for file in (folder / "metrics.jsonl" for folder in folders)
        )
        assert parts == whole
        names = [sorted(path.name for path in (folder / "probes").glob("*")) for folder in folders]
        assert names[0] == names[1]
        return progress

    return call


def at_evaluation(patch, *, number):
    """A signal comes in this evaluation, counted from 1."""
    measure, calls = Classification.measure, []

    def measured(*args, **options):
        calls.append(1)
        if len(calls) == number:
            send()
        return measure(*args, **options)

    patch.setattr(Classification, "measure", measured)


@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_while_it_evaluates(goes_on, number):
    progress = goes_on(functools.partial(at_evaluation, number=number))
    assert (progress["step"], progress["batch"], progress["is_to_evaluate"]) == (4 * number, 4, True)


def test_while_statistics_are_measured_for_an_evaluation(goes_on):
    def disturb(patch):
        precise = importlib.import_module("runner.methods.precise_batchnorm")
        estimate = precise.estimate_batchnorm_statistics

        def estimated(model, batches):
            send()
            return estimate(model, batches)

        patch.setattr(precise, "estimate_batchnorm_statistics", estimated)

    progress = goes_on(disturb, "norm=[batchnorm,precise_batchnorm]")
    assert (progress["step"], progress["is_to_evaluate"]) == (4, True)


@pytest.mark.parametrize(
    ("when", "step"),
    [
        pytest.param("probe_at=[0]", 0, marks=pytest.mark.slow),
        pytest.param("probe_at=[6]", 6, marks=pytest.mark.slow),
        ("probe_at=[4]", 4),
        pytest.param("probe_every_epochs=3", 12, marks=pytest.mark.slow),
    ],
)
def test_while_it_probes(goes_on, monkeypatch, when, step):
    """The second of two probes is broken off: it is made up for, and the first is not run again."""
    monkeypatch.setattr("runner.experiment.targets.draw", lambda *_: Figure())  # to draw takes longer than to train

    def disturb(patch):
        module = importlib.import_module("runner.probes.gradient_histogram")
        original = module.gradient_histogram

        @functools.wraps(original)
        def probe(*args, **options):
            send()
            return original(*args, **options)

        patch.setattr(module, "gradient_histogram", probe)

    at = ("probe_at=[]",) if "every" in when else ()
    progress = goes_on(disturb, "probe=[activation_statistics,gradient_histogram]", when, *at)
    assert progress["step"] == step
    assert progress["probes_left"] == ["gradient_histogram"]


def test_a_step_that_does_not_end_as_that_which_compiles(small, tmp_path, monkeypatch):
    """There is nothing to write; the checkpoint before it stays."""
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.3)
    step = OptimizerStep.__call__

    def endless(take_step, *args, number, **options):
        if number == 3:
            send()
            time.sleep(60)
        return step(take_step, *args, number=number, **options)

    monkeypatch.setattr(OptimizerStep, "__call__", endless)
    outcome = small(*SETTINGS, "train.checkpoint_every_steps=2", "name=run")
    assert outcome.code == 130
    assert "python -m runner resume=outputs/runs/run" in outcome.out
    assert load_checkpoint(tmp_path / "outputs/runs/run/checkpoints/last.pt")["progress"]["step"] == 2


def test_before_training_begins(small, tmp_path, monkeypatch):
    prepare = importlib.import_module("runner.experiment.run").prepare

    def prepared(*args):
        send()
        return prepare(*args)

    monkeypatch.setattr("runner.experiment.run.prepare", prepared)
    assert small(*SETTINGS, "name=run").code == 130
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr("runner.experiment.check.check_batch_size", send)
    assert small(*SETTINGS, "name=other").code == 130
    assert not (tmp_path / "outputs/runs/other").exists()
