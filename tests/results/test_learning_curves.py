"""Learning curves of metrics files written by hand."""

import json
import math

import numpy as np
import pytest

from runner.results.learning_curves import learning_curves

ROWS = [
    {"step": 3, "epoch": 1, "split": "steps", "loss": 2.0, "agc/clipped_share": 0.25},
    {"step": 5, "epoch": 1, "split": "train", "loss": 1.5, "accuracy": 0.5, "lr": 0.1},
    {"step": 5, "epoch": 1, "split": "validation", "loss": 1.75, "accuracy": 0.5},
    {"step": 10, "epoch": 2, "split": "train", "loss": None, "accuracy": 0.75, "lr": 0.05, "note": "odd"},
    {"step": 10, "epoch": 2, "split": "validation", "loss": 1.25, "accuracy": 0.625},
    {"step": 15, "epoch": 3, "split": "train", "loss": 0.5, "accuracy": 1.0},
    {"step": 15, "epoch": 3, "split": "validation", "loss": 1.0, "accuracy": 0.625},
    {"step": 15, "epoch": 3, "split": "test", "loss": 1.1, "accuracy": 0.5},
]


def write(path, rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


def test_arrays_by_split(tmp_path):
    path = write(tmp_path / "metrics.jsonl", ROWS)
    found = learning_curves(path)
    expected = {
        "steps/step": [3],
        "steps/epoch": [1],
        "steps/loss": [2],
        "steps/agc/clipped_share": [0.25],
        "train/step": [5, 10, 15],
        "train/epoch": [1, 2, 3],
        "train/loss": [1.5, math.nan, 0.5],
        "train/accuracy": [0.5, 0.75, 1],
        "train/lr": [0.1, 0.05, math.nan],
        "validation/step": [5, 10, 15],
        "validation/epoch": [1, 2, 3],
        "validation/loss": [1.75, 1.25, 1],
        "validation/accuracy": [0.5, 0.625, 0.625],
        "test/step": [15],
        "test/epoch": [3],
        "test/loss": [1.1],
        "test/accuracy": [0.5],
    }
    assert found.arrays.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found.arrays[name], values)
    assert learning_curves(tmp_path).arrays.keys() == found.arrays.keys()


def test_numbers(tmp_path):
    found = learning_curves(write(tmp_path / "metrics.jsonl", ROWS))
    assert found.numbers == {
        "best_score": 0.625,
        "best_epoch": 2,
        "epochs": 3,
        "train_loss": 0.5,
        "validation_loss": 1,
        "generalization_gap": 0.375,
    }
    assert found.texts == {"score": "accuracy"}


@pytest.mark.parametrize("rows", [[], ROWS[:1], [{**ROWS[2], "accuracy": None, "loss": None}]])
def test_a_run_that_ended_early(tmp_path, rows):
    found = learning_curves(write(tmp_path / "metrics.jsonl", rows))
    assert found.numbers["epochs"] == 0
    assert all(math.isnan(value) for name, value in found.numbers.items() if name != "epochs")


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write(tmp_path / "metrics.jsonl", ROWS, end='\n{"step": 20, "split": "tr')
    assert learning_curves(path).numbers["epochs"] == 3


@pytest.mark.parametrize("line", ["{not json", "[1, 2]", '{"step": 3}'])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{line}\n")
    with pytest.raises(ValueError, match="line 3: no"):
        learning_curves(path)
