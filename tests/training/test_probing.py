"""Probes in a run: when they measure, what they leave, and that training does not notice them."""

import json

import numpy as np
import torch
from matplotlib.figure import Figure

from runner.probes import Measurement
from runner.results.metrics import read_rows

STATEFUL = (
    "norm=[ghost_batchnorm,agc]",
    "ghost_batchnorm.ghost_batch_size=4",
    "regularization=[stochastic_depth,dropout]",
    "stochastic_depth.drop_rate=0.5",
    "train.epochs=2",
    "train.log_every_steps=2",
)


def weights(folder):
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)


def test_training_goes_on_as_if_nothing_had_looked(small, tmp_path, monkeypatch):
    chosen = "probe=[activation_statistics,gradient_histogram,class_gradients,clipping,loss_landscape]"
    few = ("probe.loss_landscape.num_batches=1", "probe.loss_landscape.num_steps=3", "probe_every_epochs=1")
    assert small(*STATEFUL, "name=plain").code == 0
    monkeypatch.setattr(
        "runner.experiment.targets.draw", lambda *_: Figure()
    )  # else drawing 20 figures is all that it does
    outcome = small(*STATEFUL, chosen, "probe_at=[0,3]", *few, "name=probed")
    assert outcome.code == 0, outcome.out
    plain, probed = (tmp_path / "outputs/runs" / name for name in ("plain", "probed"))
    measured = Measurement.load(probed / "probes/clipping-step0.npz")
    assert "3.conv1.weight" in measured.texts["parameters"]
    assert "6.weight" not in measured.texts["parameters"]  # of the classifier
    first, second = weights(plain), weights(probed)
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert torch.equal(first["random"]["cpu"], second["random"]["cpu"])
    assert str(first["methods"]) == str(second["methods"])
    steps = [row["step"] for row in read_rows(probed / "metrics.jsonl") if row["split"] == "probe"]
    assert steps == [moment for moment in (0, 3, 4, 8) for _ in range(5)]
    assert {file.name for file in (probed / "probes").glob("clipping*.npz")} == {
        f"clipping-step{step}.npz" for step in (0, 3, 4, 8)
    }
    timings = ("images_per_second", "seconds")
    rows = [
        [
            {key: value for key, value in row.items() if key not in timings}
            for row in read_rows(folder / "metrics.jsonl")
            if row["split"] != "probe"
        ]
        for folder in (plain, probed)
    ]
    assert rows[0] == rows[1]


def test_one_moment_leaves_one_file_a_probe_and_its_numbers(small, tmp_path):
    chosen = "probe=[gradient_histogram,learning_curves]"
    assert small(chosen, "probe.gradient_histogram.layer=-1", "train.epochs=2", "name=run").code == 0
    folder = tmp_path / "outputs/runs/run"
    files = {file.name for file in (folder / "probes").iterdir()}
    assert files == {f"{name}.{kind}" for name in ("gradient_histogram", "learning_curves") for kind in ("npz", "png")}
    found = Measurement.load(folder / "probes/gradient_histogram.npz")
    [row] = [row for row in read_rows(folder / "metrics.jsonl") if row["split"] == "probe"]
    for name, number in found.numbers.items():
        assert row[f"gradient_histogram/{name}"] == number
    curves = Measurement.load(folder / "probes/learning_curves.npz")
    losses = [row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == "validation"]
    assert np.array_equal(curves.arrays["validation/loss"], losses)


def test_a_probe_that_does_not_suit_the_model_is_left_out(small, tmp_path):
    chosen = "probe=[gradient_histogram,sharpness]"
    outcome = small(chosen, "probe.gradient_histogram.layer=3.relu", "train.max_steps=1", "name=run")
    assert outcome.code == 0, outcome.out
    assert "probe gradient_histogram: layer=3.relu" in outcome.out
    files = {file.name for file in (tmp_path / "outputs/runs/run/probes").iterdir()}
    assert files == {"sharpness.npz", "sharpness.png"}
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "completed"


def test_epochs_alone_are_moments_too(small, tmp_path):
    chosen = ("probe=[gradient_histogram,learning_curves]", "probe_at=[]", "probe_every_epochs=2", "train.epochs=3")
    assert small(*chosen, "name=run").code == 0
    folder = tmp_path / "outputs/runs/run"
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == "probe"] == [8]
    assert (folder / "probes/gradient_histogram-step8.png").is_file()


def test_a_run_without_metrics_has_no_curves(small, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("runner.training.loop.Trainer._step", interrupted)
    outcome = small("probe=learning_curves", "name=run")
    assert outcome.code == 130
    assert "Traceback" not in outcome.out
