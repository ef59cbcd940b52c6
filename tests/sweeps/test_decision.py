"""Studies to which seeds are added until their claims are decided."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from runner.results.job import Job
from runner.results.runs import Run
from runner.sweeps.decision import Decision

pytestmark = pytest.mark.usefixtures("without_figures")

SURE = {  # decided at the first look: what the seed does not change has no spread
    "claim": "Batch norm adds parameters.",
    "measure": "model/num_params",
    "plus": {"norm": "[batchnorm]"},
    "minus": {"norm": "[none]"},
    "holds": {"above": 0},
}
OPEN = {  # of 8 random images
    "claim": "Batch norm gains something.",
    "measure": "test/score",
    "plus": {"norm": "[batchnorm]"},
    "minus": {"norm": "[groupnorm]"},
    "holds": {"above": 0.001},
}
FOLDER = Path("outputs/sweeps/s")


@pytest.fixture
def study(small, tmp_path):
    """`study(claims, ...)` runs a study of three norms and 4 seeds, two steps each."""

    def call(claims, *words, **sweep):
        axes = {"seed": "range(4)", "norm": "[batchnorm],[none],[groupnorm]"}
        settings = {"decide": True, "max_seeds": 6, "axes": axes, **sweep}
        own = {"sweep": settings, "train": {"max_steps": 2}}
        for group, content in (
            ("experiment", {"defaults": [{"override /sweep": "own"}], **own}),
            ("sweep", {"claims": claims}),
        ):
            file = tmp_path / "ext" / group / "own.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            header = "# @package _global_\n" if group == "experiment" else ""
            file.write_text(header + yaml.safe_dump(content, sort_keys=False))
        return small("paths.extensions=ext", "experiment=own", "sweep.name=s", *words)

    return call


def seeds_of(norm: str) -> list[int]:
    folders = FOLDER.glob(f"*norm={norm},*/summary.json")
    return sorted(int(path.parent.name.partition("seed=")[2].partition("-")[0]) for path in folders)


def test_arms_of_decided_claims_get_no_more_seeds(study):
    outcome = study([SURE, OPEN])
    assert outcome.code == 0, outcome.out + outcome.err
    assert (seeds_of("none"), seeds_of("batchnorm"), seeds_of("groupnorm")) == ([*range(4)], [*range(6)], [*range(6)])
    assert "Look: 1 of 2 claims decided; 2 arms need more seeds" in outcome.out
    assert "note: holds, " in outcome.out
    assert "1 of 2 claims is not decided with 6 seeds (sweep.max_seeds)" in outcome.out
    report = (FOLDER / "report.md").read_text()
    assert "that holds at all looks together (look 3)" in report
    assert "t, 5 degrees" not in report
    assert yaml.safe_load((FOLDER / "sweep.yaml").read_text())["decide"] is True
    again = study([SURE, OPEN], "sweep.decide=false")  # looks that were taken stay taken
    assert "that holds at all looks together (look 3)" in again.out


def test_a_study_ends_when_every_claim_is_decided(study):
    outcome = study([SURE])
    assert outcome.code == 0, outcome.out + outcome.err
    assert len(list(FOLDER.glob("*/summary.json"))) == 12
    assert "Every claim is decided; 0:" in outcome.out
    assert "more seeds" not in outcome.out
    assert "Go on with the sweep" not in outcome.out


@pytest.mark.slow
def test_a_study_that_was_cut_short_goes_on_to_the_same_runs(study):
    assert study([OPEN], max_seeds=5).code == 0
    names = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    for path in [*FOLDER.glob("*seed=4*"), *FOLDER.glob("*seed=3*")]:
        shutil.rmtree(path)
    outcome = study([OPEN], max_seeds=5)
    assert "not decided with 5 seeds" in outcome.out
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == names
    assert seeds_of("none") == [*range(4)]
    more = study([OPEN], max_seeds=7)  # and on, with all its looks
    assert seeds_of("groupnorm") == [*range(7)]
    assert "(look 4)" in more.out


def test_no_run_begins_when_the_budget_is_spent(study):
    outcome = study([OPEN], budget="1s")
    assert outcome.code == 0, outcome.out + outcome.err
    assert 1 <= len(list(FOLDER.glob("*/summary.json"))) < 18
    assert "1 of 1 claims is not decided" in outcome.out
    assert "of 1s spent, too little for another seed. Give more with sweep.budget=TIME." in outcome.out
    assert study([OPEN], budget="10min").code == 0
    assert seeds_of("batchnorm") == [*range(6)]


def test_a_seed_on_the_command_line_is_all_there_is(study):
    assert study([SURE, OPEN], "seed=0,1").code == 0
    assert len(list(FOLDER.glob("*/summary.json"))) == 6


@pytest.mark.slow
def test_several_processes_decide_together(study):
    outcome = study([SURE, OPEN], "sweep.jobs_at_once=2")
    assert outcome.code == 0, outcome.out + outcome.err
    assert (seeds_of("none"), seeds_of("batchnorm"), seeds_of("groupnorm")) == ([*range(4)], [*range(6)], [*range(6)])
    assert "Look: 1 of 2 claims decided" in outcome.out


@pytest.mark.parametrize(
    ("claims", "sweep", "words", "message"),
    [
        ([], {}, (), "sweep.decide=true: there is no claim to decide"),
        ([SURE], {"axes": {"norm": "[batchnorm],[none]"}}, (), "sweep.decide=true: seeds are added to those of sweep"),
        ([SURE], {"max_seeds": 3}, (), "sweep.max_seeds=3: it must be a whole number in [4, 1000]"),
        ([SURE], {"budget": "soon"}, (), "sweep.budget=soon: it must be a time with its unit"),
        ([SURE], {"decide": "maybe"}, (), "sweep.decide=maybe: it must be true or false"),
    ],
)
def test_what_cannot_decide_is_refused(study, claims, sweep, words, message):
    outcome = study(claims, *words, **sweep)
    outcome.assert_refused(message)
    assert not FOLDER.exists()


def a_decision(tmp_path: Path, budget: str | None = None) -> Decision:
    return Decision(tmp_path, frozenset(), tuple(range(8)), budget)


def test_time_is_spent_while_a_run_is_at_work(tmp_path, monkeypatch):
    """Runs at once count once, and so do short pauses; a night between two commands does not."""
    spans = {"a": (100.0, 160.0), "b": (130.0, 200.0), "c": (204.0, 210.0), "d": (9000.0, 9010.0)}
    monkeypatch.setattr(Decision, "_span", lambda decision, run: spans[run.folder.name])
    runs = [Run(tmp_path / name, "completed") for name in spans]
    assert a_decision(tmp_path).spent(runs) == 110 + 10


def test_a_run_that_was_resumed_counts_from_then_on(tmp_path):
    for name, when in (("record.json", 5000), ("metrics.jsonl", 5030), ("summary.json", 5060)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (when, when))
    resumed = {"provenance": {"time": "1970-01-01T01:23:30+00:00"}}  # 5010
    assert a_decision(tmp_path).spent([Run(tmp_path, "completed", summary=resumed)]) == 50
    assert a_decision(tmp_path).spent([Run(tmp_path, "interrupted")]) == 60


def test_a_seed_waits_for_an_earlier_one_that_was_cut_short(study, tmp_path):
    study([OPEN], max_seeds=5)
    [cut] = FOLDER.glob("*norm=groupnorm*seed=4*")
    (cut / "summary.json").unlink()
    jobs = yaml.safe_load((FOLDER / "sweep.yaml").read_text())["jobs"].values()
    words = next(words for words in jobs if "norm=[batchnorm]" in words)
    job = Job("x", 1, 1, FOLDER, tuple("seed=5" if word.startswith("seed=") else word for word in words))
    decision = Decision(FOLDER, frozenset(), tuple(range(8)), None)
    assert os.path.isdir(cut)
    assert not decision.wants(job)
    shutil.rmtree(cut)
    assert decision.wants(job)
