"""`runner evaluate`, on runs of the runner itself."""

import json

import pytest

from runner.commands.evaluate import main


@pytest.fixture
def evaluate(capsys):
    def call(*arguments):
        main(arguments)
        return capsys.readouterr().out

    return call


def test_a_checkpoint_gives_the_numbers_of_the_summary(finished, evaluate):
    folder = finished("train.epochs=2")
    summary = json.loads((folder / "summary.json").read_text())
    for split, checkpoint, expected in (
        ("test", "best", summary["metrics"]),
        ("test", "last", summary["last"]),
        ("validation", "best", summary["best"]),
    ):
        line = evaluate(str(folder), "--split", split, "--checkpoint", checkpoint)
        assert f"random {split}, 8 images, {checkpoint}.pt" in line
        assert f"accuracy {100 * expected['accuracy']:.2f} %, loss {expected['loss']:.4f}" in line


def test_another_data_set_and_wrong_settings(finished, tmp_path, evaluate, capsys):
    folder = str(finished("train.max_steps=1"))
    assert "digits validation, 143 images" in evaluate(folder, "--split", "validation", "dataset=digits")
    for arguments, message in (
        ([folder, "dataset.num_classes=7"], "it has 7 classes, the model was trained for 10"),
        ([str(tmp_path)], "no run lies there"),
        ([folder, "datset=digits"], "Did you mean dataset?"),
    ):
        with pytest.raises(SystemExit) as end:
            evaluate(*arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_the_folder_alone_is_required(evaluate, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate()
    assert end.value.code == 2
    assert "the following arguments are required: FOLDER\n" in capsys.readouterr().err


def test_a_split_of_which_nothing_is_measured(finished, evaluate, monkeypatch):
    folder = finished("train.max_steps=1")
    monkeypatch.setattr("runner.data.batches.TensorEvaluationBatches.__iter__", lambda batches: iter(()))
    with pytest.raises(SystemExit, match="random test: An evaluation had no image: nothing is measured") as end:
        evaluate(str(folder))
    assert "Traceback" not in str(end.value)
