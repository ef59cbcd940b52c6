"""What the console says of a run at its end, and at its first epoch."""

import json
import re

import pytest

from runner.experiment.summary import probe_rows


def test_a_run_of_probes_alone_ends_with_their_numbers_and_pictures(small, tmp_path):
    outcome = small("train.max_steps=0", "probe=gradient_histogram", "name=run")
    assert outcome.code == 0, outcome.err
    assert "training: none, probes alone (train.max_steps=0)" in outcome.out
    end = outcome.out.split("status: completed")[1]
    [row] = map(json.loads, (tmp_path / "outputs/runs/run/metrics.jsonl").read_text().splitlines())
    numbers = " ".join(re.findall("gradient_histogram: (.*)", end))
    assert f"excess kurtosis {row['gradient_histogram/excess_kurtosis']:.3g}, tail index " in numbers
    assert re.search("p99.9 [0-9.]+,", numbers)
    assert numbers.endswith(" probes/gradient_histogram.png")
    assert (tmp_path / "outputs/runs/run/probes/gradient_histogram.png").is_file()


def test_a_probe_of_several_steps_has_its_last_numbers(tmp_path):
    rows = [{"step": step, "epoch": 0, "split": "probe", "sharpness/largest": step, "x/y_z": None} for step in (0, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "probes").mkdir()
    for name in ("sharpness-step0.png", "sharpness-step7.png"):
        (tmp_path / "probes" / name).touch()
    assert probe_rows(tmp_path) == [("sharpness", "largest 7\nprobes/sharpness-step7.png")]


@pytest.mark.parametrize(
    ("words", "far_above", "young_steps", "is_told"),
    [
        ((), 0, 4, True),
        ((), 0, 3, False),
        ((), 1e9, 4, False),
        (("norm=groupnorm", "groupnorm.num_groups=8"), 0, 4, False),
    ],
)
def test_young_running_statistics_are_told(small, monkeypatch, words, far_above, young_steps, is_told):
    monkeypatch.setattr("runner.training.loop.FAR_ABOVE", far_above)
    monkeypatch.setattr("runner.training.loop.YOUNG_STEPS", young_steps)
    out = small("train.epochs=2", *words).out
    assert out.count("batch norm's running statistics are young: after 4 steps") == is_told
