"""What differs between runs, on folders written by hand."""

import json
import math
import re
from io import StringIO

import pytest
import yaml
from rich.console import Console

from runner.report.comparison_table import print_comparison
from runner.results.comparison import compare, score_error

CONFIG = {
    "name": "a",
    "seed": 0,
    "train": {"epochs": 2, "precision": "fp32"},
    "agc": {"_target_": "runner.methods.agc.AdaptiveGradientClipping", "clip": 0.01, "groups": {}},
    "wandb": {"tags": []},
    "paths": {"outputs": "outputs", "methods": None},
}
SUMMARY = {
    "status": "completed",
    "metrics": {"accuracy": 0.90, "loss": 0.5},
    "last": {"accuracy": 0.89, "loss": 0.6},
    "best": {"accuracy": 0.8, "loss": 0.7, "epoch": 2},
    "model": {"num_params": 1000, "multiply_adds": 2_000_000},
    "methods": {"agc": 58},
    "throughput": {"images_per_second": 100.0, "train_seconds": 61.0},
    "provenance": {
        "command": "one",
        "git": {"commit": "a" * 40, "dirty": False},
        "versions": {"torch": "2.15.0", "numpy": "2.4.6"},
        "hardware": {"gpu": None, "cores": 2},
        "time": "1",
    },
    "data": {"name": "digits", "test": 400, "validation_source": "train"},
    "error": None,
}
ROWS = [
    {"step": 9 * epoch, "epoch": epoch, "split": split, "loss": loss / epoch, "accuracy": 0.5, "seconds": 1.0}
    for epoch in (1, 2)
    for split, loss in (("train", 1.0), ("validation", 1.5))
]


def changed(values, changes):
    """A copy of nested `values` with dotted keys changed; None takes a key away."""
    values = json.loads(json.dumps(values))
    for key, value in changes.items():
        *nodes, last = key.split(".")
        part = values
        for node in nodes:
            part = part[node]
        part.pop(last, None)
        if value is not None:
            part[last] = value
    return values


@pytest.fixture
def run(tmp_path):
    """Writes a run's folder with changes to its settings, summary and rows."""

    def write(name, settings=(), summary=(), rows=ROWS):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(changed(CONFIG, dict(settings) | {"name": name})))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(changed(SUMMARY, dict(summary))))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return write


def printed(found, *, width=None):
    """What is shown: on a terminal of this width, or on none."""
    console = Console(file=StringIO(), force_terminal=width is not None, width=width or 80, highlight=False)
    print_comparison(found, console)
    return console.file.getvalue()


def test_runs_that_differ_in_speed_and_place_alone_are_identical(run):
    slower = {"throughput.images_per_second": 50.0, "provenance.time": "2", "provenance.command": "two"}
    rows = [{**row, "seconds": 2.0} for row in ROWS]
    found = compare([run("a"), run("b", {"wandb.tags": ["x"], "paths.outputs": "o"}, slower, rows)])
    assert found.identical
    assert (found.settings, found.code, found.curves) == ({}, {}, {"B": None})
    assert [row.name for row in found.results if row.differs] == ["training images/s"]
    assert "identical, as far as the folders tell" in printed(found)


@pytest.mark.parametrize(
    ("settings", "summary", "rows"),
    [
        ({"seed": 1}, {}, ROWS),
        ({"paths.extensions": "mine"}, {}, ROWS),
        ({}, {"provenance.git.commit": "b" * 40}, ROWS),
        ({}, {"provenance.versions.torch": "2.11.0"}, ROWS),
        ({}, {"metrics.loss": 0.5 + 1e-15}, ROWS),
        ({}, {"status": "diverged"}, ROWS),
        ({}, {}, [*ROWS[:-1], {**ROWS[-1], "loss": ROWS[-1]["loss"] + 1e-15}]),
        ({}, None, ROWS),
    ],
)
def test_any_other_difference_is_one(run, settings, summary, rows):
    found = compare([run("a"), run("b", settings, summary, rows)])
    assert not found.identical
    assert "identical, as far" not in printed(found)


def test_settings_that_differ_or_that_one_lacks(run):
    other = {"agc": None, "train.epochs": 3, "ema": {"decay": 0.9}}
    found = compare([run("a"), run("b", other), run("c")])
    assert found.settings == {
        "methods": ("agc", "-", "agc"),
        "agc.clip": ("0.01", "-", "0.01"),
        "agc.groups": ("{}", "-", "{}"),
        "train.epochs": ("2", "3", "2"),
        "ema.decay": ("-", "0.9", "-"),
    }


def test_code_that_differs_and_code_that_is_not_known(run):
    other = {"provenance.versions.torch": "2.11.0", "provenance.hardware.gpu": "NVIDIA H100", "provenance.git": None}
    found = compare([run("a", {}, {"provenance.git.dirty": True}), run("b", {}, other)])
    assert found.code == {
        "git.commit": ("a" * 40, "-"),
        "git.dirty": ("true", "-"),
        "versions.torch": ("2.15.0", "2.11.0"),
        "hardware.gpu": ("null", "NVIDIA H100"),
    }
    assert found.notes == (
        "A: uncommitted changes, so the commit does not say all of what ran.",
        "B: not run from a git checkout; the code is not known.",
    )


def test_the_binomial_error_of_a_difference_of_test_scores(run):
    a, near, far = run("a"), run("b", {}, {"metrics.accuracy": 0.92}), run("c", {}, {"metrics.accuracy": 0.95})
    found = compare([a, near, far])
    assert score_error(found.runs[0], found.runs[1]) == pytest.approx(math.sqrt((0.09 + 0.0736) / 400))
    assert found.scores == (
        "B - A: test accuracy +2.00 percentage points, within the standard error of 2.02 (400 test images): "
        "they do not tell the two apart.",
        "C - A: test accuracy +5.00 percentage points, 2.7 standard errors of 1.85 (400 test images).",
    )


def test_scores_without_a_binomial_error(run):
    iou = {"metrics": {"mean_iou": 0.5, "loss": 1.0}, "best": {"mean_iou": 0.4, "loss": 1.0, "epoch": 1}}
    other = compare([run("a"), run("b", {}, iou), run("c", {}, {"data.name": "cifar10"})])
    assert [text.partition(": ")[2][:30] for text in other.scores] == ["no difference of test scores, "] * 2
    assert [row.values for row in other.results if "best validation mean IoU" in row.name] == [(None, 0.4, None)]
    both = compare([run("d", {}, iou), run("e", {}, {**iou, "metrics": {"mean_iou": 0.6, "loss": 1.0}})])
    [text] = both.scores
    assert text == "B - A: test mean IoU +10.00 percentage points; how much of it is chance is not known."


def test_the_first_epoch_at_which_learning_curves_differ(run):
    later = [*ROWS[:3], {**ROWS[3], "loss": 9.0, "accuracy": 0.25}]
    speed = [{**row, "seconds": 7.0} for row in ROWS]
    at_once = [{**ROWS[0], "lr": 0.1}, *ROWS[1:]]
    lost = [*ROWS[:3], {**ROWS[3], "loss": None}]
    runs = [run("a")]
    for name, rows in (("b", later), ("c", ROWS[:2]), ("d", speed), ("e", at_once), ("f", []), ("g", lost)):
        runs.append(run(name, {}, {}, rows))
    assert compare(runs).curves == {
        "B": "B: from epoch 2 on; validation loss: A 0.75, B 9.",
        "C": "C: as A's to its end; A has an epoch 2, C has none.",
        "D": None,
        "E": "E: from epoch 1 on; train lr: A -, E 0.1.",
        "F": "F: as A's to its end; A has an epoch 1, F has none.",
        "G": "G: from epoch 2 on; validation loss: A 0.75, G -.",
    }


def test_a_run_that_failed_or_still_runs_is_compared_as_far_as_it_goes(run):
    found = compare([run("a"), run("b", {"seed": 1}, None, ROWS[:2])])
    assert found.settings == {"seed": ("0", "1")}
    assert found.results[0].values == ("completed", "interrupted")
    assert found.notes == ("B is interrupted: it has no summary.json: killed, or running on another machine",)
    assert found.scores == ()


def test_wrong_folders(run, tmp_path):
    a, broken = run("a"), run("b")
    with pytest.raises(ValueError, match="2 to 26 runs can be compared, not 1"):
        compare([a])
    with pytest.raises(ValueError, match=r"nowhere: no run lies there \(config.yaml is missing\)"):
        compare([a, tmp_path / "nowhere"])
    for text in ("a: [", "word"):
        (broken / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml: .*the file was changed"):
            compare([a, broken])


def test_80_columns_and_a_line_a_row_where_there_is_no_terminal(run):
    target = "a.very.long.module.name.that.does.not.fit.in.a.column." + "x" * 60
    found = compare([run("a"), run("b", {"agc._target_": target, "train.precision": "bf16"}), run("c")])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed(found, width=80)).split("settings")[1]  # after the folders
    assert 60 < max(map(len, shown.splitlines())) <= 80
    plain = printed(found)
    assert "\x1b" not in plain
    [line] = [line for line in plain.splitlines() if "agc._target_" in line]
    assert line.split() == ["agc._target_", CONFIG["agc"]["_target_"], target, CONFIG["agc"]["_target_"]]
    [line] = [line for line in plain.splitlines() if "test accuracy (of best.pt)" in line]
    assert line.split()[-6:] == ["90.00", "%"] * 3
    assert ["training", "time", *["1:01"] * 3] in [line.split() for line in plain.splitlines()]
