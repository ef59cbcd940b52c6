"""predictions.npz beside the metrics of the run, and its values of images beside direct computation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.results.predictions import images_of, num_images, write_predictions
from runner.results.runs import Run, read_run
from runner.training.evaluation import evaluate
from runner.training.precision import Precision
from runner.training.tasks import Classification, Segmentation

CPU = Precision("fp32", torch.device("cpu"))


def a_run(folder, outputs, score="accuracy", **summary):
    write_predictions(folder / "predictions.npz", outputs)
    summary = {"best": {score: 0.5, "loss": 1.0}, "metrics": {score: 0.5, "loss": 1.0}, **summary}
    return Run(folder, "completed", summary=summary)


@pytest.mark.usefixtures("small_model")
def test_the_means_over_images_are_the_runs_own_numbers(runner, tmp_path):
    settings = ("dataset=digits", "dataset.image_size=8", "wandb.mode=disabled", "train.epochs=2", "train.max_steps=20")
    assert runner(*settings, "name=run").code == 0
    run = read_run(tmp_path / "outputs/runs/run")
    for measure in ("test/accuracy", "test/score", "test/loss", "last/score", "last/loss"):
        values = images_of(run, measure).values
        assert values.mean() == pytest.approx(run.number(measure), rel=1e-6)
        assert len(values) == run.section("data")["test"]
    assert num_images(run, "test/score") == 359
    assert images_of(run, "validation/score") is None
    assert images_of(run, "train/loss@epoch=1") is None


def test_what_a_classifier_says_of_an_image():
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 5), torch.randint(5, (7,))
    batches = [(logits[:4], targets[:4]), (logits[4:], targets[4:])]
    found = evaluate(nn.Identity(), batches, CPU, Classification(5), keep_images=True)
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    expected = [row.pop(target) - max(row) for row, target in rows]
    np.testing.assert_allclose(found.images["margin"], expected, rtol=1e-6)
    assert ((found.images["margin"] > 0) == (found.images["class"] == found.images["target"])).all()
    np.testing.assert_array_equal(found.images["class"], logits.argmax(1))
    np.testing.assert_array_equal(found.images["target"], targets)
    np.testing.assert_allclose(found.images["loss"], F.cross_entropy(logits, targets, reduction="none"), rtol=1e-6)
    assert evaluate(nn.Identity(), [(logits, targets)], CPU, Classification(5)).images == {}


def test_the_images_of_a_mean_iou_are_jackknifed(tmp_path):
    torch.manual_seed(0)
    logits, masks = torch.randn(6, 3, 4, 4), torch.randint(3, (6, 4, 4))
    masks[0, 0] = 255
    task = Segmentation(3)

    def evaluated(chosen):
        batches = [(logits[chosen], [(mask, (4, 4)) for mask in masks[chosen]])]
        return evaluate(nn.Identity(), batches, CPU, task, keep_images=True)

    whole = evaluated(list(range(6)))
    run = a_run(tmp_path, {"test": whole.images}, "mean_iou")
    without = [evaluated([j for j in range(6) if j != i]).metrics["mean_iou"] for i in range(6)]
    expected = 6 * whole.metrics["mean_iou"] - 5 * np.array(without)
    np.testing.assert_allclose(images_of(run, "test/score").values, expected)
    np.testing.assert_allclose(images_of(run, "test/loss").values.mean(), whole.metrics["loss"], rtol=1e-6)
    assert images_of(run, "test/pixel_accuracy") is None
    assert num_images(run, "test/score") == 0


def test_a_file_that_is_missing_or_damaged_tells_nothing(tmp_path):
    run = a_run(tmp_path, {"test": {"target": np.zeros(3), "class": np.zeros(3)}})
    assert images_of(run, "test/score").values.tolist() == [1, 1, 1]
    assert images_of(run, "last/score") is None
    (tmp_path / "predictions.npz").write_bytes(b"PK damaged")
    assert images_of(run, "test/score") is None
    (tmp_path / "predictions.npz").unlink()
    assert images_of(run, "test/score") is None
