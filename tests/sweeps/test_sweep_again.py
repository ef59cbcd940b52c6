"""A sweep that is run again: what has a result stays, what was cut short goes on, what failed is tried again."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from runner.training.loop import Trainer

SWEEP = ("train.max_steps=2", "train.checkpoint_every_steps=1", "-m", "norm=agc", "sweep.name=s")
CLIPS = "agc.clip=0.01,0.02,0.04"


pytestmark = pytest.mark.usefixtures("without_figures")


class Died(BaseException):
    """What nothing catches, as little as a SIGKILL."""


def spoil(monkeypatch, clip, deed, *, step=1):
    """Have `deed()` called after this step of the job with this agc.clip; returns the steps of each clip."""
    taken, original = [], Trainer._step

    def spoilt(trainer, *args):
        original(trainer, *args)
        taken.append(trainer.state.methods["agc"].clip)
        if trainer.state.methods["agc"].clip == clip and trainer.progress.step + 1 == step:
            deed()

    monkeypatch.setattr(Trainer, "_step", spoilt)
    return taken


def fail():
    raise RuntimeError("the device fell off")


def die():
    raise Died


def folders():
    """Each job's folder by its clip."""
    found = Path("outputs/sweeps/s").glob("*/record.json")
    return {re.search(r"clip=([\d.]+)-", str(file.parent)).group(1): file.parent for file in found}


def statuses():
    found = {clip: folder / "summary.json" for clip, folder in folders().items()}
    return {clip: json.loads(file.read_text())["status"] for clip, file in found.items() if file.is_file()}


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_what_has_a_result_is_skipped_and_what_failed_is_tried_again(small, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, 0.02, fail)
        outcome = small(*SWEEP, CLIPS)
    assert outcome.code == 1
    assert statuses() == {"0.01": "completed", "0.02": "failed", "0.04": "completed"}
    kept = [content(folders()[clip]) for clip in ("0.01", "0.04")]

    outcome = small(*SWEEP, CLIPS, "sweep.retry_failed=false")
    assert outcome.code == 1  # a job of the sweep failed
    assert re.search(r"^job 2/3: clip=0.02-[0-9a-f]{8}  failed before$", outcome.out, re.MULTILINE)
    assert statuses()["0.02"] == "failed"

    taken = spoil(monkeypatch, None, fail)
    outcome = small(*SWEEP, CLIPS)
    assert outcome.code == 0
    assert set(taken) == {0.02}
    assert statuses() == dict.fromkeys(("0.01", "0.02", "0.04"), "completed")
    assert not (folders()["0.02"] / "error.txt").exists()
    assert [content(folders()[clip]) for clip in ("0.01", "0.04")] == kept
    summary = json.loads((folders()["0.04"] / "summary.json").read_text())
    score = f"{100 * summary['metrics']['accuracy']:.1f}"
    line = rf"^job 3/3: clip=0.04-[0-9a-f]{{8}}  completed, test accuracy {score} % before$"
    assert re.search(line, outcome.out, re.MULTILINE)
    assert len(list(Path("outputs/sweeps/s").glob("*/summary.json"))) == 3


def test_what_diverged_is_a_result(small, monkeypatch):
    hot = ("-m", "norm=none", "schedule.warmup_epochs=0", "train.epochs=2", "optimizer.lr=10000000", "sweep.name=s")
    assert small(*hot).code == 0
    outcome = small(*hot)
    assert outcome.code == 0
    assert re.search(r"^job 1/1: \S+  diverged before$", outcome.out, re.MULTILINE)


def test_a_job_that_died_goes_on(small, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, 0.02, die, step=2)
        with pytest.raises(Died):
            small(*SWEEP, CLIPS)
    assert statuses() == {"0.01": "completed"}
    taken = spoil(monkeypatch, None, fail)
    outcome = small(*SWEEP, CLIPS)
    assert outcome.code == 0
    assert taken == [0.02, 0.04, 0.04]  # step 1 was in the checkpoint
    assert statuses() == dict.fromkeys(("0.01", "0.02", "0.04"), "completed")


def test_jobs_may_be_added(small, monkeypatch):
    assert small(*SWEEP, "agc.clip=0.02,0.04").code == 0
    taken = spoil(monkeypatch, None, fail)
    reordered = (*SWEEP[:-2], "agc.clip=0.01,0.02", *SWEEP[-2:])  # the same settings in another order
    assert small(*reordered).code == 0
    assert set(taken) == {0.01}
    assert set(folders()) == {"0.01", "0.02", "0.04"}
    record = yaml.safe_load(Path("outputs/sweeps/s/sweep.yaml").read_text())
    assert record["axes"] == {"agc.clip": ["0.01", "0.02", "0.04"]}
    assert set(record["jobs"]) == {folder.name for folder in folders().values()}
    first, second = record["command"].split(" && ")
    assert first.endswith("agc.clip=0.02,0.04")
    assert "agc.clip=0.01,0.02" in second
    assert len(Path("outputs/sweeps/s/results.csv").read_text().splitlines()) == 4
    assert small(*SWEEP, "agc.clip=0.01,0.02,0.04").code == 0
    record = yaml.safe_load(Path("outputs/sweeps/s/sweep.yaml").read_text())
    assert record["command"].endswith("agc.clip=0.01,0.02,0.04")
    assert " && " not in record["command"]


@pytest.mark.slow
def test_a_study_goes_on(runner):
    study = ("experiment=bjorck/fig5_activation_statistics", "dataset=random", "dataset.num_images=32")
    study += ("dataset.image_size=8", "train.global_batch_size=8", "wandb.mode=disabled", "train.device=cpu")
    study += ("model=resnet20", "sweep.name=s")
    assert runner(*study, "seed=0").code == 0
    outcome = runner(*study, "seed=0,1")
    assert outcome.code == 0
    assert len(re.findall(r"^job \d/4: \S+  completed before$", outcome.out, re.MULTILINE)) == 2
    assert len(list(Path("outputs/sweeps/s").glob("*/summary.json"))) == 4
    record = yaml.safe_load(Path("outputs/sweeps/s/sweep.yaml").read_text())
    assert record["axes"]["seed"] == ["0", "1"]
    assert len(record["claims"]) == 3


def test_an_error_before_a_run_begins_is_its_jobs_alone(small, monkeypatch):
    """Such as the build of a model for which there is no memory."""
    from runner.experiment import run as experiment

    check = experiment.check

    def spoilt(config):
        if config.agc.clip == 0.02:
            raise MemoryError("no more of it")
        return check(config)

    monkeypatch.setattr(experiment, "check", spoilt)
    outcome = small(*SWEEP, CLIPS)
    assert outcome.code == 1
    name = next(path for path in Path("outputs/sweeps/s").iterdir() if "0.02" in path.name)
    assert "MemoryError: no more of it" in (name / "error.txt").read_text()
    assert json.loads((name / "summary.json").read_text())["status"] == "failed"
    before, table = outcome.out.split("\nSweep ")
    assert "Traceback" in before
    assert "MemoryError: no more of it" in table
    assert table.count("completed") == 2


@pytest.mark.parametrize("end", [SystemExit(7), KeyboardInterrupt()])
def test_the_end_of_the_program_within_a_job(small, monkeypatch, end):
    def leave():
        raise end

    spoil(monkeypatch, 0.02, leave)
    outcome = small(*SWEEP, CLIPS)
    interrupted = isinstance(end, KeyboardInterrupt)
    assert outcome.code == (130 if interrupted else 1)
    expected = {"0.01": "completed", "0.02": "interrupted" if interrupted else "failed", "0.04": "completed"}
    assert statuses() == {key: value for key, value in expected.items() if key != "0.04" or not interrupted}


def test_ctrl_c_before_the_first_step_is_no_death(small, monkeypatch):
    """As while W&B starts: the job was stopped, and the next ones are to do."""
    monkeypatch.setattr("runner.experiment.run.open_tracker", Mock(side_effect=KeyboardInterrupt))
    outcome = small(*SWEEP, CLIPS)
    assert outcome.code == 130
    assert statuses() == {"0.01": "interrupted"}
    assert "killed" not in outcome.out
    assert re.findall(r"^to do  clip=(\S+)-", outcome.out, re.MULTILINE) == ["0.02", "0.04"]


@pytest.mark.slow
def test_a_job_that_another_process_has_is_passed_over(small, tmp_path):
    assert small("plan", *SWEEP, CLIPS).code == 0
    assert list(tmp_path.iterdir()) == []
    assert small(*SWEEP, CLIPS).code == 0
    folder = folders()["0.02"]
    (folder / "summary.json").unlink()
    code = "import pathlib, sys; from runner.results.run_lock import hold; lock = hold(pathlib.Path(sys.argv[1])); "
    code += "lock.__enter__(); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        outcome = small(*SWEEP, CLIPS)
        other.stdin.close()
    assert outcome.code == 0
    assert re.search(r"^job 2/3: \S+  running elsewhere$", outcome.out, re.MULTILINE)
    assert re.search(r"^ +0.02 .* running", outcome.out, re.MULTILINE)
    assert not (folder / "summary.json").exists()


COMMAND = [sys.executable, "-m", "runner", "dataset=random", "dataset.num_images=64", "dataset.image_size=8"]
COMMAND += ["train.global_batch_size=8", "wandb.mode=disabled", "train.device=cpu", "model=resnet20", "-m", "norm=agc"]


def start(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("agc.clip=0.01,0.02", "train.epochs=20", "train.checkpoint_every_steps=1", "sweep.name=s")
    process = start(*words)
    sweep = tmp_path / "outputs/sweeps/s"
    wait_for(lambda: any(sweep.glob("*0.02*/checkpoints/last.pt")), process)
    process.kill()
    process.communicate()
    done, dead = sorted(sweep.glob("*clip=*"))
    assert (done / "summary.json").is_file()
    assert not (dead / "summary.json").is_file()
    kept = content(done)
    plan = subprocess.run([*COMMAND[:3], "plan", *COMMAND[3:], *words], capture_output=True, text=True)
    assert re.search(r"0.02 +interrupted at step [1-9]\d* of \d+ ", plan.stdout), plan.stdout + plan.stderr

    process = start(*words)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert content(done) == kept
    assert json.loads((dead / "summary.json").read_text())["status"] == "completed"
    rows = [json.loads(line) for line in (dead / "metrics.jsonl").read_text().splitlines()]
    epochs = [row["epoch"] for row in rows if row["split"] == "validation"]
    assert epochs == list(range(1, 21))


@pytest.mark.slow
def test_two_processes_on_one_sweep_take_no_job_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("agc.clip=0.01,0.02,0.04,0.08,0.16,0.32", "train.epochs=6", "sweep.name=s")
    processes = [start(*words), start(*words)]
    outs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    begun = [set(re.findall(r"^job (\d)/6: \S+$", out, re.MULTILINE)) for out in outs]
    assert begun[0] | begun[1] == set("123456")
    assert not begun[0] & begun[1]
    assert all(begun), outs
    with (tmp_path / "outputs/sweeps/s/results.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["completed"] * 6
    assert len(list((tmp_path / "outputs/sweeps/s").glob("*clip=*"))) == 6
    last = max(outs, key=lambda out: out.count("completed "))
    assert len(re.findall(r"^[* ] +0\.\d+ ", last.split("\nSweep ")[-1], re.MULTILINE)) == 6


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_with_the_command_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start("agc.clip=0.01,0.02", "train.epochs=1000")
    wait_for(lambda: any(tmp_path.glob("outputs/sweeps/*/*/checkpoints/last.pt")), process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    [sweep] = (tmp_path / "outputs/sweeps").iterdir()
    words = [*COMMAND[3:], "agc.clip=0.01,0.02", "train.epochs=1000", f"sweep.name={sweep.name}"]
    assert out.splitlines()[-1] == f"Go on with the sweep: python -m runner {shlex.join(words)}"
    [summary] = sweep.glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted"
