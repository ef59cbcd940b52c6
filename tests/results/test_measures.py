from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from runner.results.measurement import Measurement
from runner.results.measures import TITLES, check_measure, label, measure, scale, unit
from runner.results.runs import Run, read_run


@pytest.fixture
def run(tmp_path):
    """A function that writes a run, with its metrics and probes, and reads it."""

    def write(**summary: object) -> Run:
        content = {
            "status": "completed",
            "metrics": {"accuracy": 0.8, "loss": 0.5},
            "last": {"accuracy": 0.7, "loss": None},
            "best": {"accuracy": 0.9, "loss": 0.4, "epoch": 2},
            "model": {"name": "resnet20", "num_params": 269722, "multiply_adds": 40551040},
            "throughput": {"images_per_second": 72.5, "train_seconds": 3.5},
            "overrides": ["agc.clip=0.02", "norm=agc", "seed=1"],
            **summary,
        }
        (tmp_path / "summary.json").write_text(json.dumps(content))
        rows = [
            {"step": 10, "epoch": 1, "split": "train", "loss": 2.0, "accuracy": 0.3},
            {"step": 10, "epoch": 1, "split": "validation", "loss": 1.0, "accuracy": 0.6},
            {"step": 15, "epoch": 2, "split": "steps", "loss": 9.0},
            {"step": 20, "epoch": 2, "split": "validation", "loss": None, "accuracy": 0.9},
            {"step": 20, "epoch": 2, "split": "test", "loss": 0.5, "accuracy": 0.8},
            {"step": 20, "epoch": 2, "split": "probe", "sharpness/largest_eigenvalue": 4.0},
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_run(tmp_path)

    return write


def probe(folder: Path, file: str, **numbers: float) -> None:
    (folder / "probes").mkdir(exist_ok=True)
    Measurement({"curve": np.arange(3.0)}, numbers).save(folder / "probes" / f"{file}.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("test/accuracy", 0.8),
            ("test/score", 0.8),
            ("test/loss", 0.5),
            ("last/score", 0.7),
            ("last/loss", math.nan),
        ],
        *[("validation/score", 0.9), ("validation/loss", 0.4), ("test/mean_iou", math.nan)],
        *[("validation/accuracy@epoch=1", 0.6), ("validation/score@epoch=2", 0.9), ("train/loss@epoch=1", 2.0)],
        *[("validation/loss@epoch=2", math.nan), ("train/loss@epoch=2", math.nan), ("train/score@epoch=9", math.nan)],
        *[("train/loss", 2.0), ("train/score", 0.3), ("train/mean_iou", math.nan)],
        *[("throughput/images_per_second", 72.5), ("throughput/train_seconds", 3.5), ("status/diverged", 0.0)],
        *[("model/num_params", 269722), ("model/multiply_adds", 40551040)],
        *[("setting/agc.clip", 0.02), ("setting/norm", math.nan), ("setting/optimizer.lr", math.nan)],
    ],
)
def test_every_family_of_measures(run, name, value):
    check_measure(name)
    assert measure(run(), name) == pytest.approx(value, nan_ok=True)


def test_a_score_is_the_mean_iou_of_a_segmentation(run):
    segmented = run(metrics={"mean_iou": 0.4, "loss": 1}, best={"mean_iou": 0.5})
    assert measure(segmented, "test/score") == measure(segmented, "test/mean_iou") == 0.4
    assert math.isnan(measure(segmented, "test/accuracy"))


@pytest.mark.parametrize("status", ["diverged", "interrupted", "failed"])
def test_a_training_that_did_not_end_has_no_score_but_keeps_what_it_measured_on_the_way(run, status):
    broken = run(status=status, metrics={"accuracy": None, "loss": None})
    # an epoch before the end was its best, and that is no result
    assert all(math.isnan(measure(broken, name)) for name in ("test/score", "validation/score", "validation/loss"))
    assert measure(broken, "train/loss@epoch=1") == 2.0
    assert math.isnan(measure(broken, "train/loss"))
    assert measure(broken, "status/diverged") == pytest.approx(1.0 if status == "diverged" else math.nan, nan_ok=True)


def test_a_probes_number_is_that_of_the_last_step_or_of_the_step_asked_for(run):
    one, name = run(), "probe/sharpness/largest_eigenvalue"
    assert math.isnan(measure(one, name))
    probe(one.folder, "sharpness-step100", largest_eigenvalue=math.inf)
    probe(one.folder, "sharpness-step20", largest_eigenvalue=2.0)
    assert measure(one, name) == math.inf
    assert measure(one, f"{name}@step=20") == 2.0
    assert math.isnan(measure(one, f"{name}@step=21"))
    assert math.isnan(measure(one, "probe/sharpness/iterations"))


def test_the_only_moment_of_a_probe_is_told_by_the_metrics(run):
    one, name = run(), "probe/sharpness/largest_eigenvalue"
    probe(one.folder, "sharpness", largest_eigenvalue=4.0, **{"ratio/layer1.0": 5.0})
    assert measure(one, name) == measure(one, f"{name}@step=20") == 4.0
    assert math.isnan(measure(one, f"{name}@step=10"))
    assert measure(one, "probe/sharpness/ratio/layer1.0") == 5.0


def test_what_was_spoilt_counts_as_not_measured(run):
    one = run()
    probe(one.folder, "sharpness", largest_eigenvalue=4.0)
    file = one.folder / "probes" / "sharpness.npz"
    file.write_bytes(file.read_bytes()[:100])
    (one.folder / "metrics.jsonl").write_text("{\n{}\n")
    assert math.isnan(measure(one, "probe/sharpness/largest_eigenvalue"))
    assert math.isnan(measure(one, "train/loss@epoch=1"))
    assert math.isnan(measure(read_run(one.folder / "nowhere"), "test/score"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        *[("tests/score", "Did you mean test"), ("accuracy", "Measures look like"), ("test/", "Measures look like")],
        *[("test/acuracy", "Did you mean accuracy"), ("test/score@epoch=2", "only train and validation")],
        *[("train/loss@epoch=x", "epoch=NUMBER")],
        *[("probe/sharpnes/largest", "Did you mean sharpness"), ("probe/sharpness", "one of the probe's numbers")],
        *[("probe/sharpness/x@epoch=1", "@step=NUMBER"), ("validation/loss@step=1", "only a probe has @step")],
        *[
            ("throughput/speed", "images_per_second"),
            ("status/failed", "status/diverged"),
            ("model/size", "num_params"),
        ],
    ],
)
def test_a_name_that_no_run_can_have_is_refused_with_a_remedy(name, remedy):
    with pytest.raises(ValueError, match=rf"^{name}: .*{remedy}"):
        check_measure(name)


@pytest.mark.parametrize(
    ("name", "words", "factor"),
    [
        *[("test/accuracy", "test accuracy (%)", 100), ("validation/mean_iou", "validation mean IoU (%)", 100)],
        *[("last/loss", "test loss of the last weights", 1), ("train/loss@epoch=3", "training loss after epoch 3", 1)],
        *[("test/score", "test score (%)", 100), ("throughput/images_per_second", "images/s", 1)],
        *[("status/diverged", "diverged runs (%)", 100), ("setting/agc.clip", "agc.clip", 1)],
        *[("validation/score@epoch=2", "validation score after epoch 2 (%)", 100)],
        ("probe/gradient_terms/ratio@step=5", "sum of |terms| over |sum|, step 5", 1),
    ],
)
def test_how_a_measure_is_called_and_scaled(name, words, factor):
    assert (label(name), scale(name)) == (words, factor)


def test_a_score_is_called_what_the_runs_call_it():
    assert label("last/score", "accuracy") == "test accuracy of the last weights (%)"


@pytest.mark.parametrize("name", [name for name in TITLES if name.startswith("probe/")])
def test_every_named_number_is_one_of_its_probe(name):
    _, probe_name, number = name.split("/")
    check_measure(name)
    source = Path(find_spec(f"runner.probes.{probe_name}").origin).read_text()
    assert f'"{number}"' in source


def test_a_named_number_has_its_unit():
    name = "probe/class_gradients/most_frequent_share_all@step=3"
    assert label(name) == "share of the most frequent class, all batches, step 3 (%)"
    assert (scale(name), unit(name)) == (100, "%")
    slope = "probe/activation_statistics/slope_log10_std"
    assert (label(slope), scale(slope)) == ("slope of log10 std (decades a layer)", 1)
    assert unit(slope) == "decades a layer"
