"""The table of verdicts in conf/sweep/README.md, made from sweeps."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from runner.report.report import read_report

SCRIPT = Path(__file__).parents[1] / "scripts/study_table.py"
MAIN = runpy.run_path(str(SCRIPT))["main"]
README = Path(__file__).parents[1] / "conf/sweep/README.md"
STUDY = "ghost_batchnorm/ghost_batch_size"


@pytest.fixture
def sweep_of(make_run, tmp_path):
    """`sweep_of(scores, words)` is a sweep of cases a and b, in tmp_path/sweeps; `scores` has those of a."""

    def make(scores, words=f"experiment={STUDY}", *, day=1, seeds_of_b=3, jobs=()):
        for case, accuracies in (("a", scores), ("b", [0.9] * seeds_of_b)):
            for seed, accuracy in enumerate(accuracies):
                time = f"2026-01-0{day}T03:04:0{seed}+00:00"
                git = {"commit": "0123456789abcdef", "dirty": False}
                make_run(f"case={case}", f"seed={seed}", accuracy=accuracy, provenance={"time": time, "git": git})
        claim = {"measure": "test/score", "plus": {"case": "a"}, "minus": {"case": "b"}, "published": "+1"}
        record = {
            "command": f"python -m runner {words}",
            "title": "A study",
            "claims": [
                {**claim, "claim": "A <is> better.", "holds": {"above": 0}},
                {**claim, "claim": "A is far better.", "holds": {"above": 0.5}},
                {**claim, "claim": "A is near 3 points better.", "holds": {"within": [0.0299, 0.0301]}},
            ],
            "jobs": {name: [] for name in jobs},
        }
        (tmp_path / "sweep/sweep.yaml").write_text(yaml.safe_dump(record))
        folder = tmp_path / f"sweeps/{len([*tmp_path.glob('sweeps/*')])}"
        folder.parent.mkdir(exist_ok=True)
        return (tmp_path / "sweep").rename(folder)

    return make


@pytest.fixture
def table(tmp_path):
    """`table()` makes the table in a copy of the README and returns its rows, cell by cell."""
    readme = tmp_path / "README.md"
    head, begin, rest = README.read_text().partition("<!-- study_table.py: begin -->\n")
    readme.write_text(f"{head}{begin}{rest[rest.index('<!-- study_table.py: end -->') :]}")

    def make():
        MAIN([str(tmp_path / "sweeps"), "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith(head)
        assert "## Adding a study" in text
        rows = [line for line in text.splitlines() if line.startswith("| [")]
        return {re.match(r"\| \[(.*?)\]", row)[1]: row.strip("| ").split(" | ") for row in rows}

    return make


def test_a_row_has_the_verdicts_of_the_report(sweep_of, table):
    folder = sweep_of([0.92, 0.93, 0.94])
    [(name, cells)] = table().items()
    assert name == STUDY
    assert cells[0] == f"[{STUDY}](../experiment/{STUDY}.yaml)"
    assert cells[1] == "1 holds, 1 does not, 1 undecidable"
    verdicts = read_report(folder, into=folder).verdicts
    sentences = cells[2].split("<br>")
    for sign, verdict, sentence in zip("✓✗?", verdicts, sentences, strict=True):
        assert sentence.startswith(f"**{sign}** ")
        assert verdict.measured.replace("[", "\\[").replace("]", "\\]") in sentence
        assert ("over all claims together undecidable here" in sentence) == (verdict.after_holm != verdict.verdict)
    assert "A \\<is\\> better." in sentences[0]
    assert cells[3] == "3"
    assert cells[4].startswith("6 completed<br>")
    assert "3:03 of run time in all; started 2026-01-01 03:04 UTC" in cells[4]
    assert "commit 0123456789ab" in cells[4]


def test_the_last_sweep_of_a_study_counts_and_rows_without_a_sweep_stay(sweep_of, table, tmp_path):
    sweep_of([0.92, 0.93, 0.94], day=2)
    sweep_of([0.82, 0.83, 0.84])
    sweep_of([0.92, 0.93, 0.94], "experiment=combined/factorial sweep.jobs_at_once=auto wandb.mode=disabled")
    rows = table()
    assert [*rows] == ["combined/factorial", STUDY]
    assert rows[STUDY][1] == "1 holds, 1 does not, 1 undecidable"
    for path in (tmp_path / "sweeps").glob("*"):
        path.rename(tmp_path / path.name)
    sweep_of([0.82, 0.83, 0.84], day=3, seeds_of_b=5)
    again = table()
    assert again["combined/factorial"] == rows["combined/factorial"]
    assert again[STUDY][1] == "3 do not"
    assert again[STUDY][3] == "3 to 5"


@pytest.mark.parametrize(
    ("words", "jobs", "why"),
    [
        (f"experiment={STUDY} train.epochs=1", (), "no study as its file has it"),
        (f"experiment={STUDY} && python -m runner -m experiment={STUDY} seed=4,5", (), "no study as its file has it"),
        ("-m seed=0,1", (), "no study as its file has it"),
        (f"experiment={STUDY}", ("case=c,seed=0",), "1 jobs have no result, as case=c,seed=0"),
    ],
)
def test_a_sweep_that_is_no_finished_study_is_left_out_by_name(words, jobs, why, sweep_of, table, capsys):
    sweep_of([0.92, 0.93, 0.94], words, jobs=jobs)
    assert table() == {}
    assert f"Left out: 0: {why}" in capsys.readouterr().out.replace("it is ", "")


def test_a_wrong_folder_or_readme_is_told(tmp_path, capsys):
    for words, part in (([str(tmp_path / "none")], "there is no such folder"), ([str(tmp_path)], "it lacks the line")):
        (tmp_path / "README.md").write_text("nothing")
        with pytest.raises(SystemExit) as end:
            MAIN([*words, "--readme", str(tmp_path / "README.md")])
        assert end.value.code == 2
        assert part in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "nothing"
