"""`plan`: the state of each job and the time that is left, before anything runs."""

import json
import re
import time
from dataclasses import replace

import pytest

from runner.experiment.check import check
from runner.results.run_state import RunState, read_state
from runner.sweeps import step_time
from runner.sweeps.forecast import Forecast, _cost, total_steps
from runner.sweeps.step_time import StepTime, measure_step
from runner.training.checkpoint import save_checkpoint
from runner.training.step import OptimizerStep

pytestmark = pytest.mark.usefixtures("without_figures")
DATA = ("dataset=random", "dataset.num_images=64", "dataset.image_size=8", "train.global_batch_size=8")
DATA += ("train.device=cpu", "wandb.mode=disabled")
SWEEP = ("train.max_steps=2", "-m", "norm=agc", "sweep.name=s")


@pytest.fixture
def timed(monkeypatch):
    """The configurations that are timed; each takes 0.25 s an image of training and 0.5 s one of evaluation."""
    seen = []

    def measure(checked):
        seen.append(checked.settings)
        return StepTime(0.25, 0.5, 8)

    monkeypatch.setattr("runner.sweeps.forecast.measure_step", measure)
    return seen


def rows(out):
    """State, time and estimate by the clip."""
    found = re.findall(r"^ *(0\.\d+)  +(.*?)  +(\S+(?: s)?)  +(.*?) *$", out, re.MULTILINE)
    return {clip: rest for clip, *rest in found}


def test_a_new_sweep_is_timed_once_for_what_takes_the_same_time(small, timed, tmp_path):
    outcome = small("plan", *SWEEP, "agc.clip=0.01,0.02", "train.global_batch_size=8")
    assert outcome.code == 0, outcome.err
    assert list(tmp_path.iterdir()) == []
    # 2 steps of 8 images at 0.25 s; at 0.5 s one evaluation on the validation split and two on the test split
    data = check(timed[0]).data
    seconds = 2 * 8 * 0.25 + (len(data.validation) + 2 * len(data.test)) * 0.5
    found = rows(outcome.out)
    assert set(found) == {"0.01", "0.02"}
    for state, left, source in found.values():
        assert (state, source) == ("to do", "measured here")
        assert float(left[:-2]) == pytest.approx(seconds, abs=0.06)
    assert len(timed) == 1
    total = re.search(r"Time left in all, one after the other: ([\d.]+) s", outcome.out).group(1)
    assert float(total) == pytest.approx(2 * seconds, abs=0.1)


def test_the_states_of_a_sweep(small, timed, tmp_path):
    assert small(*SWEEP, "agc.clip=0.01,0.02,0.03,0.04").code == 0
    folders = {re.search(r"clip=([\d.]+)-", path.name).group(1): path for path in tmp_path.glob("outputs/sweeps/s/*=*")}
    (folders["0.02"] / "summary.json").unlink()  # as if it had been killed
    summary = json.loads((folders["0.03"] / "summary.json").read_text())
    (folders["0.03"] / "summary.json").write_text(json.dumps({**summary, "status": "failed"}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ("plan", "train.checkpoint_every_steps=null", *SWEEP, "agc.clip=0.01,0.02,0.03,0.05")
    outcome = small(*words)
    assert outcome.code == 0, outcome.err
    found = rows(outcome.out)
    assert found["0.01"][0] == read_state(folders["0.01"]).text
    assert found["0.02"] == ["interrupted at step 2 of 2", "0.0 s", "from finished jobs"]
    assert found["0.03"][0] == "failed at step 2 of 2"
    assert found["0.05"][::2] == ["to do", "from finished jobs"]
    assert timed == []
    speed = summary["throughput"]
    assert float(found["0.05"][1][:-2]) <= 2 * max(
        json.loads((folder / "summary.json").read_text())["throughput"]["seconds"]
        for folder in folders.values()
        if (folder / "summary.json").is_file()
    )
    assert speed["seconds"] > 0
    assert "4 jobs: 1 completed, 1 interrupted, 1 failed, 1 to do" in outcome.out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert rows(small(*words, "sweep.retry_failed=false").out)["0.03"][0] == "failed, left so"


def test_a_single_run_and_a_wrong_setting(small, timed, tmp_path):
    outcome = small("plan", "train.max_steps=3")
    assert outcome.code == 0
    assert "A new run" in outcome.out
    assert "to do" in outcome.out
    assert small("plan", "-m", "agc.clip=0.01,0.02").code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_of_a_run_counts_from_its_checkpoint(composed, timed, tmp_path):
    config = composed(*DATA, "model=resnet20", "train.epochs=4")
    checked = check(config)
    total = 4 * (len(checked.data.train) // 8)
    assert total_steps(config, len(checked.data.train)) == total
    state = RunState("interrupted", 6)
    anew = Forecast({}).of((), checked, state, tmp_path)
    assert anew.text == f"interrupted at step 0 of {total}"
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints/last.pt", {"progress": {"step": 5}})
    going_on = Forecast({}).of((), checked, state, tmp_path)
    assert going_on.text == f"interrupted at step 5 of {total}"
    assert going_on.seconds == pytest.approx(anew.seconds * (total - 5) / total)
    checked = replace(checked, settings=config.changed({"train.max_time": "3s"}))
    assert Forecast({}).of((), checked, state, tmp_path).seconds == 3
    checked = replace(checked, settings=config.changed({"train.max_steps": 0}))
    assert Forecast({}).of((), checked, state, tmp_path).seconds is None


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("agc.clip=0.3", True),
        ("seed=3", True),
        ("optimizer.lr=1.0", True),
        ("train.epochs=9", True),
        ("agc.granularity=layer", False),
        ("model=resnet32", False),
        ("train.global_batch_size=16", False),
        ("train.precision=bf16", False),
        ("dataset.image_size=16", False),
        ("norm=[agc,weight_standardization]", False),
        ("optimizer=adamw", False),
    ],
)
def test_what_the_time_of_a_step_depends_on(composed, word, same):
    words = [*DATA, "model=resnet20", "norm=agc"]
    costs = [_cost(composed(*each).plain()) for each in (words, [*words, word])]
    assert (costs[0] == costs[1]) is same


def test_a_step_is_timed_as_it_is_run(composed, monkeypatch):
    config = composed(*DATA, "model=resnet20", "norm=agc", "regularization=mixup", "train.ema=0.9")
    slept, original = [], OptimizerStep.__call__

    def slow(step, images, targets, **options):
        slept.append(len(images))
        time.sleep(0.02 * len(images))
        return original(step, images, targets, **options)

    monkeypatch.setattr(OptimizerStep, "__call__", slow)
    monkeypatch.setattr(step_time, "ENOUGH_SECONDS", 0.5)
    began = time.monotonic()
    found = measure_step(check(config))
    assert set(slept) == {8}
    assert 0.02 <= found.training < 0.2
    assert found.images == 8
    assert time.monotonic() - began < 20


def test_a_batch_for_which_there_is_no_time_is_made_smaller(composed, monkeypatch):
    config = composed(
        *DATA[:1], "dataset.num_images=4096", *DATA[2:3], "model=resnet20", "train.global_batch_size=1024"
    )
    slept = []

    def slow(step, images, targets, **options):
        slept.append(len(images))
        time.sleep(0.01 * len(images))

    monkeypatch.setattr(OptimizerStep, "__call__", slow)
    monkeypatch.setattr(step_time, "ENOUGH_SECONDS", 0.4)
    found = measure_step(check(config))
    assert max(slept) <= 64
    assert found.training == pytest.approx(0.01, rel=0.5)


@pytest.mark.slow
def test_segmentation_is_timed_too(composed, monkeypatch):
    monkeypatch.setattr(step_time, "ENOUGH_SECONDS", 0.1)
    config = composed("experiment=digit_scenes/deeplabv3plus_resnet18", "train.device=cpu")
    assert measure_step(check(config)).training > 0
