"""Forged checkpoints: whatever is missing in one, or of another kind, is told and nothing is written."""

import copy
import shutil

import pytest
import torch

from runner import load_run
from runner.optim.optimizers import parameter_groups
from runner.training.checkpoint import PREVIOUS, load_checkpoint, save_checkpoint
from runner.training.checkpoint_content import check_buffers_fit, check_last, check_optimizer_fit

FORGED = {
    "about": [None, [], {}],
    "about.image_size": [10**6, -1, "8", None, (8, 10**6), (8,), (), (8, 8, 8), (8, "8"), [8, 8]],
    "about.num_classes": [10**12, 0, True],
    "about.mean": [None, [1, 2], [], "x"],
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


NAN = float("nan")
OF_THE_WRONG_TYPE = {  # what whoever takes the part up would stumble over
    "sums.methods": [NAN, [1], {"x": NAN}, {"x": torch.zeros(3)}, {1: torch.zeros(2)}, {"x": torch.zeros(2).long()}],
    "sums.loss": [NAN, torch.zeros(1), torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.complex64)],
    "sums.counts": [NAN, torch.zeros(2), torch.zeros(3).long(), torch.zeros(1).long().expand(101)],
    "sums.images": [NAN, -1, True],
    "logged.counts": [(1,), (NAN, 1)],
    "logged.methods": [{"x": 1}, {1: (1.0, 1.0)}, {"x": (1.0, 10**400)}],
    "progress.seconds": [NAN, -1.0, float("inf"), 10**400, "1"],
    "progress.probes_left": [[None], 3],
    "progress.best": [{"epoch": 1.5, "loss": 1.0}, {"epoch": NAN, "loss": 1.0}],
    "progress.kept": [[{"epoch": -1, "loss": 1.0}]],
    "optimizer.state": [{0: {"momentum_buffer": None}}, {0: {"momentum_buffer": "x"}}, {0: {"step": torch.zeros(())}}],
    "scaler": [{"scale": 1.0}, {"x": "y"}],
    "random.cuda": [torch.zeros(16), "x"],
    "ranks": [[{"random": {}, "buffers": {}, "ema_buffers": {}}]],
    "model.stranger": [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta"), NAN],
}


@pytest.fixture
def whole(finished):
    """The last.pt of a finished run, and the model of its best.pt."""
    folder = finished("train.epochs=1")
    return load_checkpoint(folder / "checkpoints/last.pt"), load_run(folder)[0]


def test_each_part_of_a_checkpoint_is_of_the_type_that_is_taken_up(whole):
    check_last(whole[0])
    for place, values in OF_THE_WRONG_TYPE.items():
        for value in values:
            checkpoint = copy.deepcopy(whole[0])
            put(checkpoint, place, value)
            try:
                check_last(checkpoint)
            except ValueError:
                continue
            pytest.fail(f"{place} may be {value}")


def test_the_optimizers_state_and_the_ranks_buffers_are_those_of_the_model(whole):
    checkpoint, model = whole
    parameters = [each for group in parameter_groups(model, weight_decay=0) for each in group["params"]]
    check_optimizer_fit(checkpoint, parameters)
    state = checkpoint["optimizer"]["state"]
    fewer, more = {0: state[0]}, {**state, len(state): state[0]}
    for forged in (fewer, more, {**state, 0: state[len(state) - 1]}, {**state, 0: {}}):
        with pytest.raises(ValueError, match="optimizer's state"):
            check_optimizer_fit({**checkpoint, "optimizer": {"state": forged}}, parameters)
    own = {"random": checkpoint["random"], "buffers": {}, "ema_buffers": {}}
    name = next(name for name, buffer in model.named_buffers() if buffer.is_floating_point())
    check_buffers_fit({"ranks": [{**own, "buffers": {name: checkpoint["model"][name]}}]}, model)
    for buffers in ({"stranger": torch.zeros(1)}, {name: torch.zeros(1)}):
        with pytest.raises(ValueError, match="buffers of another model"):
            check_buffers_fit({"ranks": [{**own, "buffers": buffers}]}, model)


@pytest.mark.parametrize(("place", "value"), [("about.record", None), ("progress.best", {"epoch": 1, "loss": 1.0})])
def test_what_a_checkpoint_lacks_stands_elsewhere_or_is_found_anew(small, finished, place, value):
    last = finished("train.epochs=1") / "checkpoints/last.pt"
    checkpoint = load_checkpoint(last)
    put(checkpoint, place, value)
    save_checkpoint(last, checkpoint)
    outcome = small("resume=outputs/runs/run", "train.epochs=2")
    assert outcome.code == 0, outcome.err
    assert ("does not tell the accuracy" in outcome.out + outcome.err) == (place == "progress.best")


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
def test_a_forged_last_checkpoint_is_refused_before_anything_is_written(small, finished, tmp_path):
    folder = finished("train.epochs=1")
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


def test_a_number_that_is_stretched_over_terabytes_is_none(finished):
    best = finished("train.epochs=1") / "checkpoints/best.pt"
    checkpoint = load_checkpoint(best)
    name = next(iter(checkpoint["model"]))
    checkpoint["model"][name] = torch.zeros(1).expand(10**12)
    save_checkpoint(best, checkpoint)
    with pytest.raises(ValueError, match=f"{name} is larger than its file"):
        load_run(best.parents[1])
