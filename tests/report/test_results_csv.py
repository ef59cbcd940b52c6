from __future__ import annotations

import csv
import os

import pytest

from runner.report.results_csv import write_results_csv
from runner.results.runs import Run, read_runs


@pytest.fixture
def write(tmp_path):
    """Write the sweep's results.csv and read it."""

    def write(measures=()):
        write_results_csv(read_runs([tmp_path / "sweep"]), tmp_path / "sweep/results.csv", measures)
        with open(tmp_path / "sweep/results.csv", newline="") as file:
            return {row["job"]: row for row in csv.DictReader(file)}

    return write


def test_full_precision_and_a_column_for_each_key(make_run, write):
    make_run("norm=agc", "agc.clip=0.01", accuracy=1 / 3, test=0.2, error="two\nlines, and a comma")
    make_run("norm=[agc,none]", "seed=1")
    (make_run("killed=1") / "summary.json").unlink()
    rows = write()
    row = rows["norm=agc,agc.clip=0.01"]
    assert (row["norm"], row["agc.clip"], row["seed"]) == ("agc", "0.01", "")
    assert float(row["validation/accuracy"]) == 1 / 3
    assert (row["test/accuracy"], row["validation/epoch"], row["best_on"]) == ("0.2", "3", "validation")
    assert row["error"] == "two\nlines, and a comma"
    assert rows["norm=[agc,none],seed=1"]["norm"] == "[agc,none]"
    killed = rows["killed=1"]
    assert (killed["status"], killed["test/accuracy"]) == ("interrupted", "")


def test_measures_of_the_study_and_two_scores(make_run, write, tmp_path):
    make_run("a=1", test=0.7)
    make_run("a=2", best={"mean_iou": 0.4}, metrics={"mean_iou": 0.3})
    make_run("a=3", status="diverged", data={"validation_source": "test"})
    rows = write(["test/score", "test/loss", "status/diverged"])
    assert [row["test/score"] for row in rows.values()] == ["0.7", "0.3", ""]
    assert [row["test/loss"] for row in rows.values()] == ["0.3", "", "0.3"]
    header = (tmp_path / "sweep/results.csv").read_text().splitlines()[0].split(",")
    assert header.count("test/loss") == 1  # a measure that is a column anyway
    assert [row["status/diverged"] for row in rows.values()] == ["0.0", "0.0", "1.0"]
    assert (rows["a=1"]["test/accuracy"], rows["a=1"]["test/mean_iou"]) == ("0.7", "")
    assert (rows["a=2"]["test/accuracy"], rows["a=2"]["test/mean_iou"]) == ("", "0.3")
    assert rows["a=3"]["best_on"] == "test"


def test_it_is_replaced_as_a_whole(make_run, write, tmp_path, monkeypatch):
    make_run("a=1")
    (tmp_path / "sweep/results.csv").write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write()
    assert (tmp_path / "sweep/results.csv").read_text() == "old"
    assert sorted(os.listdir(tmp_path / "sweep")) == ["a=1", "results.csv"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+cmd", "'+1+cmd"),
        ("-1e-3", "-1e-3"),
        ("-x", "'-x"),
        ("a=b", "a=b"),
    ],
)
def test_no_cell_is_a_formula(tmp_path, text, cell):
    run = Run(tmp_path / "job", "failed", settings={"a": text}, error=text, summary={"best": {"accuracy": -0.5}})
    write_results_csv([run], tmp_path / "results.csv")
    [row] = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (row["a"], row["error"], row["validation/accuracy"]) == (cell, cell, "-0.5")
