"""The table of arms to be copied: LaTeX and CSV."""

import csv
import io
import statistics

import pytest

from runner.report.arm_table import BEST_SIGN, arm_table
from runner.report.latex import as_latex
from runner.report.results_csv import arms_csv
from runner.results.arms import arms_of
from runner.results.runs import read_runs


@pytest.fixture
def arms(make_run, tmp_path):
    for clip, scores in ((0.01, (0.9, 0.92)), (0.02, (0.8, 0.83))):
        for seed, score in enumerate(scores):
            make_run(f"agc.clip={clip}", "x_y=50%&" if clip == 0.02 else "x_y=1", f"seed={seed}", accuracy=score)
    return arms_of(read_runs([tmp_path / "sweep"]))


def test_latex_has_the_means_and_the_best_row_in_bold(arms):
    lines = as_latex(arm_table(*arms, [], "accuracy"), best=BEST_SIGN).splitlines()
    assert lines[1] == "\\begin{tabular}{rlrrrr}"
    assert lines[3].startswith("clip & x\\_y & validation accuracy (\\%) & test accuracy (\\%)")
    best, other = lines[5:7]
    assert best.startswith("\\textbf{0.01} & \\textbf{1} & \\textbf{91.0 \\textpm{} 1.4} & ")
    assert other.startswith("0.02 & 50\\%\\& & 81.5 \\textpm{} 2.1 & ")
    assert all(line.endswith(" \\\\") and line.count(" & ") == 5 for line in (lines[3], best, other))
    assert (lines[2], lines[4], *lines[-2:]) == ("\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}")


def test_arms_csv_has_full_precision(arms):
    [first, second] = csv.DictReader(io.StringIO(arms_csv(*arms, ["validation/score", "train/loss"])))
    assert (first["agc.clip"], first["runs"], first["validation/score/seeds"]) == ("0.01", "2", "2")
    assert float(second["validation/score"]) == statistics.mean([0.8, 0.83])
    assert float(second["validation/score/sd"]) == statistics.stdev([0.8, 0.83])
