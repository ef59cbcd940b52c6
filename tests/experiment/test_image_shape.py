"""Images that are not square, and of one channel or of many: from the command line to a checkpoint and back."""

import json

import pytest

from runner import load_run
from runner.commands.evaluate import evaluate_run

SHAPED = ("dataset.image_size=[8,20]", "dataset.channels=1", "model=resnet20")


def test_a_run_is_evaluated_and_resumed_with_its_own_shape(tiny, runner, tmp_path):
    outcome = tiny(*SHAPED, "train.epochs=1", "name=run")
    assert outcome.code == 0, outcome.err
    assert "images of 8x20, 10 classes" in outcome.out
    folder = tmp_path / "outputs/runs/run"
    assert json.loads((folder / "summary.json").read_text())["data"]["image_size"] == [8, 20]
    model, config = load_run(folder)
    assert model.conv1.in_channels == 1
    assert config.dataset.image_size == (8, 20)
    assert "accuracy" in evaluate_run(folder, "best", "test", ["train.device=cpu"])
    outcome = runner(f"resume={folder}", "train.epochs=2")
    assert outcome.code == 0, outcome.err


def test_a_model_is_not_evaluated_on_images_of_other_channels(tiny, tmp_path):
    assert tiny(*SHAPED, "train.max_steps=1", "name=run").code == 0
    with pytest.raises(ValueError, match=r"^dataset\.channels=3: the model was trained on images of 1\."):
        evaluate_run(tmp_path / "outputs/runs/run", "best", "test", ["dataset.channels=3", "train.device=cpu"])


def test_many_channels_train(tiny):
    outcome = tiny("dataset.channels=7", "model=nf_resnet26", "dataset.image_size=[16,8]", "train.max_steps=1")
    assert outcome.code == 0, outcome.err


def test_sides_outside_the_range_are_refused(tiny, tmp_path):
    for size in ("[8]", "[8,8,8]", "[8,4]", "[8,wide]", "{a:8}"):
        outcome = tiny(f"dataset.image_size={size}")
        assert outcome.code == 2, outcome.out
        assert "it must be a whole number in [8, 16384], or be two such numbers, [height,width]" in outcome.err
    assert not (tmp_path / "outputs").exists()
