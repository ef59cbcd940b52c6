from __future__ import annotations

import hashlib
import os
import re
import shutil

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from runner.report.report import read_report
from runner.results.measurement import Measurement
from runner.results.runs import read_runs

CLAIM = {
    "claim": "A is better than b.",
    "measure": "test/score",
    "plus": {"case": "a"},
    "minus": {"case": "b"},
    "holds": {"above": 0},
    "published": "+2 %",
}


@pytest.fixture
def study(make_run, tmp_path):
    """The folder of a study of two cases and three seeds, with one more job that was killed."""
    for case, accuracy in (("a", 0.95), ("b", 0.91)):
        for seed in (0, 1, 2):
            folder = make_run(
                f"case={case}",
                f"seed={seed}",
                accuracy=accuracy + seed / 1000,
                provenance={
                    "command": f"python -m runner case={case} seed={seed}",
                    "hardware": {"cpu": "A CPU", "cores": 2, "threads": 1},
                    "git": {"commit": "0123456789abcdef", "dirty": True},
                    "time": f"2026-01-02T03:04:0{seed}+00:00",
                },
            )
            (folder / "probes").mkdir()
    (make_run("case=b", "seed=3") / "summary.json").unlink()
    make_run("case=b", "seed=4", status="diverged", error="loss <nan> at step 7")
    record = {
        "command": "python -m runner -m case=a,b seed=0,1,2,3,4",
        "axes": {"case": ["a", "b"], "seed": ["0", "1", "2"]},
        "title": "A & B",
        "source": "A paper, figure 1",
        "about": "Much smaller than theirs.",
        "names": {"case": {"a": "the <new> one"}},
        "claims": [CLAIM],
    }
    (tmp_path / "sweep/sweep.yaml").write_text(yaml.safe_dump(record))
    return tmp_path / "sweep"


def headings(markdown):
    return re.findall(r"^## (.*)$", markdown, re.MULTILINE)


def test_a_study_in_its_order(study):
    page = read_report(study, into=study).write()
    assert page == study / "report.html"
    text = (study / "report.md").read_text()
    assert text.startswith("# A \\& B\n\nSource: A paper, figure 1\n\nMuch smaller than theirs.\n\n- Runs: 8: ")
    assert headings(text) == [
        "Verdict",
        "Results",
        "Learning curves",
        "Every run",
        "Runs that did not complete",
    ]
    assert "8: 6 completed, 1 diverged, 1 interrupted" in text
    assert "- Time: 3:34 of run time in all; started 2026-01-02 03:04 UTC" in text
    assert "- Hardware: A CPU, 2 cores, 1 thread" in text
    assert "- Code: commit 0123456789ab with changes that were not committed" in text
    assert "- Command: `python -m runner -m case=a,b seed=0,1,2,3,4`" in text
    assert "![test accuracy (%) by case](figures/test_score.png)" in text
    assert re.search(r"\| ★ \| the \\<new\\> one \| 95.1 ± 0.1 \| 95.1 ± 0.1 \| 812 ± 0 \| 3 \| 3 completed \|", text)
    # the run that was killed is not known to be of this arm
    assert "|  | b | 91.1 ± 0.1 (3 of 4) | 91.1 ± 0.1 (3 of 4) | 812 ± 0 | 4 | 3 completed, 1 diverged |" in text
    assert re.search(r"\[case=a,seed=1\]\(case%3Da%2Cseed%3D1\) \| completed \| 1 \| 95.10 \| 95.10 \|", text)
    assert "`python -m runner case=a seed=1`" in text
    assert re.search(r"case=b,seed=3\]\(\S+\) \| interrupted \| it has no summary.json", text)
    assert re.search(r"case=b,seed=4\]\(\S+\) \| diverged \| loss \\<nan\\> at step 7", text)


def test_figures_lie_beside_the_markdown_and_within_the_html(study):
    page = read_report(study, into=study).write().read_text()
    text = (study / "report.md").read_text()
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert links == ["figures/test_score.png", "figures/learning_curves.png"]
    assert all((study / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert page.count('src="data:image/png;base64,') == 2
    assert sorted(p.name for p in study.iterdir() if not p.name.startswith("case")) == [
        "arms.csv",
        "figures",
        "report.html",
        "report.md",
        "results.csv",
        "sweep.yaml",
    ]
    assert len(read_runs([study])) == 8  # the report's own files are no runs


def test_the_verdict_stands_before_all_figures(study):
    page = read_report(study, into=study).write().read_text()
    assert page.index("A is better than b.") < page.index("<img")
    assert "1 x holds." in page


def test_the_same_runs_give_the_same_bytes(study, tmp_path):
    def digests():
        read_report(study, into=tmp_path / "out").write()
        files = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    first = digests()
    assert first == digests()
    assert len(first) == 7


def test_the_measures_of_the_study_are_drawn_and_missing_ones_are_said(study):
    record = yaml.safe_load((study / "sweep.yaml").read_text())
    measures = ["test/loss", "status/diverged", "probe/sharpness/largest_eigenvalue"]
    (study / "sweep.yaml").write_text(yaml.safe_dump({**record, "measures": measures}))
    read_report(study, into=study).write()
    text = (study / "report.md").read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", text)[:2] == ["figures/test_loss.png", "figures/status_diverged.png"]
    assert "No run has a value of largest Hessian eigenvalue." in text
    assert "| test loss | diverged runs (%) | validation accuracy (%) |" in text


def test_columns_without_a_value_are_left_out(make_run, tmp_path):
    folders = [make_run(f"case={case}", accuracy=None, throughput={}) for case in "ab"]
    read_report(folders, into=tmp_path / "out").write()
    text = (tmp_path / "out/report.md").read_text()
    assert "|  | case | runs | status |" in text
    assert "| run | status | seed | command |" in text
    assert "|  | a | 1 | completed |" in text
    assert "images_per_second" in (tmp_path / "out/results.csv").read_text()  # which keeps its columns


def test_figures_that_a_report_no_longer_has_are_removed_and_no_others(study):
    read_report(study, into=study).write()
    own = study / "figures/my_own.png"
    own.write_bytes(b"mine")
    record = yaml.safe_load((study / "sweep.yaml").read_text())
    (study / "sweep.yaml").write_text(yaml.safe_dump({**record, "measures": ["test/loss"]}))
    read_report(study, into=study).write()
    assert {file.name for file in own.parent.glob("*.png")} == {"my_own.png", "test_loss.png", "learning_curves.png"}


@pytest.mark.parametrize(
    "content", [b"../other.png\n\x00.png\n" + b"a" * 300 + b".png\nfolder\n.written\n", b"\xff", None]
)
def test_a_forged_list_of_figures_removes_nothing_elsewhere(study, content):
    other, listed = study / "other.png", study / "figures/.written"
    other.write_bytes(b"mine")
    (study / "figures/folder").mkdir(parents=True)
    if content is None:
        os.mkfifo(listed)
    else:
        listed.write_bytes(content)
    read_report(study, into=study).write()
    assert other.read_bytes() == b"mine"
    assert listed.read_text() == "test_score.png\nlearning_curves.png\n"


def test_what_is_in_the_way_of_a_report_is_renamed_or_overwritten(study):
    read_report(study, into=study).write()
    expected = {path: path.read_bytes() for path in (study / "results.csv", study / "figures/test_score.png")}
    names = ("report.html", "report.md", "results.csv", "figures/test_score.png", "figures/.written")

    def put_instead(put):
        for name in names:
            (study / name).unlink()
            put(study / name)
        read_report(study, into=study).write()

    def folder(path):
        path.mkdir()
        (path / "mine").write_text("mine")

    for _ in range(2):
        put_instead(folder)
        text = (study / "report.md").read_text().replace("\\", "")
        assert all(f"{study / name} was in the way" in text for name in names)
    for name in names:
        assert (study / f"{name}.aside/mine").read_text() == (study / f"{name}.aside-2/mine").read_text() == "mine"
    for put in (os.mkfifo, lambda path: path.write_bytes(b"\xff\x00")):
        put_instead(put)
        assert {path: path.read_bytes() for path in expected} == expected
    (study / "figures").rename(study / "before")
    (study / "figures").symlink_to("before")
    (study / "before/test_score.png").unlink()
    read_report(study, into=study).write()
    assert (study / "figures").is_dir()
    assert not (study / "figures").is_symlink()
    assert not (study / "before/test_score.png").exists()  # nothing is written through a link


def test_a_job_whose_folder_is_lost_is_named(study):
    folder = study / "case=a,seed=1"
    record = yaml.safe_load((study / "sweep.yaml").read_text())
    jobs = {path.name: [] for path in study.iterdir() if path.is_dir() and path.name != "figures"}
    (study / "sweep.yaml").write_text(yaml.safe_dump({**record, "jobs": jobs}))
    read_report(study, into=study).write()
    assert "No run in" not in (study / "report.md").read_text()
    shutil.rmtree(folder)
    for put in (lambda: folder.symlink_to(folder.name), folder.unlink, lambda: folder.write_text("x")):
        put()
        read_report(study, into=study).write()
        assert "No run in the folders of these jobs: case=a,seed=1." in (study / "report.md").read_text()


def test_probes_are_shown_over_one_another_and_side_by_side(study):
    own = (study / "case=a,seed=0/probes/sharpness.png", study / "case=b,seed=0/probes/sharpness.png")
    for seed in (0, 1, 2):
        numbers = {"largest_eigenvalue": 3.0 + seed, "converged": 1.0}
        found = Measurement({"estimate": np.array([1.0, 2.0, 3.0]) + seed}, numbers, {"mode": "train"})
        for case in "ab":
            found.save(study / f"case={case},seed={seed}/probes/sharpness.npz")
    for path in own:
        Figure(figsize=(1, 1)).savefig(path)
    Figure(figsize=(1, 1)).savefig(study / "case=a,seed=0/probes/learning_curves.png")  # the report has its own
    read_report(study, into=study).write()
    text = (study / "report.md").read_text()
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert links == [
        "figures/test_score.png",
        "figures/learning_curves.png",
        "figures/probe_sharpness.png",
        "case%3Da%2Cseed%3D0/probes/sharpness.png",
        "case%3Db%2Cseed%3D0/probes/sharpness.png",
    ]


def test_any_runs_make_a_report(make_run, tmp_path):
    folders = [make_run("norm=agc", "agc.clip=0.1"), make_run("norm=agc", "agc.clip=0.2", accuracy=0.95)]
    into = tmp_path / "reports/both"
    assert read_report(folders, into=into).write().is_file()
    text = (into / "report.md").read_text()
    assert text.startswith("# norm=agc,agc.clip=0.1 and norm=agc,agc.clip=0.2\n")
    assert "(../../sweep/norm%3Dagc%2Cagc.clip%3D0.1)" in text
    assert "`python -m runner norm=agc agc.clip=0.1`" in text


def test_a_single_run_and_one_of_which_nothing_is_known(make_run, tmp_path):
    folder = make_run("a=1")
    read_report(folder, into=tmp_path / "one").write()
    assert "Learning curves" in (tmp_path / "one/report.md").read_text()
    (folder / "summary.json").write_text("{")
    read_report(folder, into=tmp_path / "none").write()
    assert headings((tmp_path / "none/report.md").read_text()) == ["Every run", "Runs that could not be read"]


@pytest.mark.parametrize("create", [False, True])
def test_no_run_no_report(tmp_path, create):
    if create:
        (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: there is no"):
        read_report(tmp_path / "empty", into=tmp_path / "out").write()
    assert not (tmp_path / "out").exists()
