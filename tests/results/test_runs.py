from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.config.text import same_value
from runner.results.runs import SweepRecord, read_run, read_runs, read_sweep

OVERRIDES = ["norm=[agc]", "++agc.clip=0.01", "~case", "wandb.mode=disabled", "name=x", "seed=3"]


def write(folder: Path, *, config: str = "model:\n  seed: 5\nseed: 7\n", **summary: object) -> Path:
    folder.mkdir(parents=True)
    content = {
        "status": "completed",
        "metrics": {"mean_iou": 0.5, "loss": 0.3},
        "best": {"mean_iou": 0.6, "loss": None, "epoch": 4},
        "throughput": {"images_per_second": 812.4},
        "data": {"validation_source": "train"},
        "error": None,
        "overrides": OVERRIDES,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(config)
    return folder


def test_a_run_as_its_summary_tells_it(tmp_path):
    run = read_run(write(tmp_path / "job"))
    assert (run.status, run.score, run.error) == ("completed", "mean_iou", None)
    names = ("validation/mean_iou", "validation/loss", "validation/epoch", "test/mean_iou", "test/loss")
    assert [run.number(name) for name in names] == [0.6, None, 4, 0.5, 0.3]
    assert (run.number("test/score"), run.number("throughput/images_per_second")) == (0.5, 812.4)
    assert (run.number("test/accuracy"), run.number("data/validation_source")) == (None, None)
    assert (run.seed, run.on_test, run.overrides) == (3, False, tuple(OVERRIDES))
    assert run.settings["norm"] == "[agc]"
    assert run.settings["agc.clip"] == "0.01"
    assert run.summary["metrics"] == {"mean_iou": 0.5, "loss": 0.3}
    assert run.arm == {"norm": "agc", "agc.clip": 0.01}  # of no account: seed, name, W&B
    assert read_run(write(tmp_path / "b", data={"validation_source": "test"})).on_test


@pytest.mark.parametrize(
    ("config", "seed"), [("model:\n  seed: 5\nseed: 7\n", 7), ("seed: null\n", None), ("a: 1\n", None)]
)
def test_a_seed_that_was_not_swept_is_that_of_the_configuration(tmp_path, config, seed):
    assert read_run(write(tmp_path / "job", config=config, overrides=["norm=agc"])).seed == seed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it has no summary.json: killed"),
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ('{"status": 3}', "no status"),
    ],
)
def test_a_run_that_cannot_be_read_says_why_and_what_it_was(tmp_path, content, reason):
    folder = write(tmp_path / "job")
    (folder / "summary.json").unlink()
    if content is not None:
        (folder / "summary.json").write_text(content)
    (folder / "overrides.yaml").write_text("- norm=[agc]\n- sweep.name=a\n")
    run = read_run(folder)
    assert run.status == ("interrupted" if content is None else "unreadable")
    assert not run.summary
    assert reason in run.error
    assert (run.settings, run.seed, run.summary) == ({"norm": "[agc]"}, 7, {})


def test_sweeps_and_runs_are_read_together_each_run_once(tmp_path):
    for size in (128, 16, 32):
        write(tmp_path / "sweep" / f"size={size}")
    (tmp_path / "sweep" / "figures").mkdir()
    alone = write(tmp_path / "alone")
    runs = read_runs([tmp_path / "sweep", alone, tmp_path / "sweep" / "size=32", str(alone)])
    assert [run.folder.name for run in runs] == ["size=16", "size=32", "size=128", "alone"]
    with pytest.raises(ValueError, match="there is no such folder"):
        read_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        *[("0.10", "1e-1", True), ("1", "1.0", True), ("[agc]", "agc", True), ("[a, b]", "[a,b]", True)],
        *[("True", "true", True), ("'a'", "a", True), ("{layer4: 0.02}", "{layer4:0.02}", True), ("nan", "nan", True)],
        *[("0.1", "0.11", False), ("[a,b]", "[b,a]", False), ("agc", "AGC", False), ("[]", "", False)],
        *[("true", "1", False), ("null", "0", False)],
    ],
)
def test_values_that_are_one_setting(a, b, same):
    assert same_value(a, b) == same_value(b, a) == same


def test_a_sweeps_record(tmp_path):
    assert read_sweep(tmp_path) == SweepRecord()
    (tmp_path / "sweep.yaml").write_text(
        "command: python -m runner\naxes:\n  case: [none, batchnorm]\n  train.ema: [null, 0.9]\n  seed: ['0', '1']\n"
        "title: A\nmeasures:\nnames: {train.compile: {true: compiled}}\nclaims: [{claim: it grows}]\n"
    )
    sweep = read_sweep(tmp_path)
    assert sweep.axes == {"case": ["none", "batchnorm"], "train.ema": ["null", "0.9"], "seed": ["0", "1"]}
    assert (sweep.command, sweep.title, sweep.source, sweep.measures) == ("python -m runner", "A", None, [])
    assert (sweep.names, sweep.claims) == ({"train.compile": {"true": "compiled"}}, [{"claim": "it grows"}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "not YAML"),
        ("names: {a: [1]}", "mapping of values"),
        ("- a", "not a mapping"),
        ("axes: [a]", r"axes=\[a\]: .* mapping"),
    ],
)
def test_a_record_that_was_spoilt_is_refused(tmp_path, text, reason):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"sweep.yaml: .*{reason}.* Mend it"):
        read_sweep(tmp_path)
