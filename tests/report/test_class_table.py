"""The table of scores by class."""

from runner.report.class_table import MOST_CLASSES, class_table, what_is_measured
from runner.report.report import read_report
from runner.results.arms import arms_of
from runner.results.runs import SweepRecord, read_runs


def arms(folder):
    return arms_of(read_runs([folder]), SweepRecord())[1]


def test_the_means_over_the_seeds_of_each_arm(make_run, tmp_path):
    make_run("agc.clip=0.01", "seed=0", accuracy_by_class={"cat": 0.5, "dog": 1.0, "emu": None})
    make_run("agc.clip=0.01", "seed=1", accuracy_by_class={"cat": 0.7, "dog": 1.0, "emu": 0.25})
    make_run("agc.clip=0.02", "seed=0", accuracy_by_class={"cat": 0.9, "dog": 0.0})
    compared = arms(tmp_path / "sweep")
    table = class_table(compared)
    assert table.rows == (("cat", "60.0 %", "90.0 %"), ("dog", "100.0 %", "0.0 %"), ("emu", "25.0 %", "-"))
    assert what_is_measured(compared) == "accuracy"
    text = (read_report(tmp_path / "sweep", into=tmp_path / "report").write().parent / "report.md").read_text()
    assert "Test accuracy by class" in text
    assert "| dog | 100.0 % | 0.0 % |" in text


def test_of_many_classes_the_lowest(make_run, tmp_path):
    make_run("seed=0", iou_by_class={str(number): (number * 7 % 100) / 100 for number in range(100)})
    compared = arms(tmp_path / "sweep")
    shares = [float(row[1].removesuffix(" %")) for row in class_table(compared).rows]
    assert shares == [float(number) for number in range(MOST_CLASSES)]
    assert what_is_measured(compared) == "IoU"


def test_runs_of_older_versions_have_none(make_run, tmp_path):
    make_run("seed=0")
    assert class_table(arms(tmp_path / "sweep")) is None
