"""Forged checkpoints: whatever is missing in one, or of another kind, is told and nothing is written."""

import shutil

import pytest
import torch

from runner import load_run
from runner.training.checkpoint import PREVIOUS, load_checkpoint, save_checkpoint

FORGED = {
    "about": [None, [], {}],
    "about.image_size": [10**6, -1, "8", None],
    "about.num_classes": [10**12, 0, True],
    "about.mean": [None, [1, 2], "x"],
    "about.record": [1, "{}", "["],
    "model": [None, {}, {"a": 1}, {1: torch.zeros(1)}],
    "methods": [None, {}, {"batchnorm": 3}],
    "progress": [None, {}, {"epoch": "1"}, {"new": 1}],
    "progress.step": [-1, 1.5, 10**30],
    "progress.doublings": [10**6],
    "progress.best": [[], {"loss": 1.0}, {"epoch": 1, "loss": "x"}],
    "progress.kept": [{}, [3]],
    "optimizer": [None, {"state": []}, {"state": {0: {"momentum_buffer": torch.zeros(7, 7)}}}],
    "sums": [None, {}, {"images": 1}],
    "random": [None, {}, {"cpu": torch.zeros(3)}],
    "logged": [{"counts": ["a"]}, {"x": 1}],
    "ranks": [3, [3], [{}]],
    "scaler": [None, 3],
}


def put(checkpoint, place, value):
    *above, last = place.split(".")
    node = checkpoint
    for name in above:
        node = node[name]
    if value is None:
        node.pop(last, None)
    else:
        node[last] = value


@pytest.mark.slow
def test_a_forged_last_checkpoint_is_refused_before_anything_is_written(small, tmp_path):
    assert small("train.epochs=1", "name=run").code == 0
    folder = tmp_path / "outputs/runs/run"
    last = folder / "checkpoints/last.pt"
    (folder / "checkpoints" / PREVIOUS).unlink(missing_ok=True)
    shutil.copy(last, tmp_path / "whole.pt")
    for place, values in FORGED.items():
        for value in values:
            checkpoint = load_checkpoint(tmp_path / "whole.pt")
            put(checkpoint, place, value)
            save_checkpoint(last, checkpoint)
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            outcome = small("resume=outputs/runs/run", "train.epochs=2")
            assert outcome.code == 2, (place, value, outcome.out)
            assert "Traceback" not in outcome.err, (place, value)
            assert outcome.err.startswith("Wrong setting. resume=outputs/runs/run: "), outcome.err
            assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
            if place.partition(".")[0] in ("about", "model", "methods"):
                with pytest.raises(ValueError, match=r"last\.pt|checkpoint"):
                    load_run(folder, "last")


def test_a_number_that_is_stretched_over_terabytes_is_none(small, tmp_path):
    assert small("train.epochs=1", "name=run").code == 0
    best = tmp_path / "outputs/runs/run/checkpoints/best.pt"
    checkpoint = load_checkpoint(best)
    name = next(iter(checkpoint["model"]))
    checkpoint["model"][name] = torch.zeros(1).expand(10**12)
    save_checkpoint(best, checkpoint)
    with pytest.raises(ValueError, match=f"{name} is larger than its file"):
        load_run(best.parents[1])
