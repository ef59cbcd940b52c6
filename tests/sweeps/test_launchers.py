"""Sweeps whose jobs a launcher runs in other processes: what comes of them is known all the same."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from runner.results.job import Job
from runner.results.run_lock import hold
from runner.results.run_state import RunState
from runner.sweeps.launcher_watch import LauncherWatch
from runner.tracking.pace import Pace

LAUNCHERS = {
    "jobs_at_once": ("sweep.jobs_at_once=2",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": ("hydra/launcher=ray",),
}
TINY = ("dataset=random", "dataset.num_images=64", "dataset.image_size=8", "train.global_batch_size=8")
TINY += ("wandb.mode=disabled", "train.device=cpu", "model=resnet20", "-m", "sweep.name=s")
DOOMED = """
import os, signal
from runner.methods.method import Method

class Doomed(Method):
    def __init__(self, how: str) -> None:
        self.how = how

    def apply(self, model, example_input, seed=0):
        return 1

    def on_step(self, progress):
        if progress > 0.6 and self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if progress > 0.6 and self.how == "fail":
            raise RuntimeError("the device fell off")
"""


@pytest.fixture(params=LAUNCHERS)
def start(request, tmp_path, monkeypatch):
    """`start(...)` begins a sweep with a launcher, its output in a pipe."""
    if request.param == "ray" and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra-ray-launcher is not installed")
    monkeypatch.chdir(tmp_path)

    def call(*words):
        command = [sys.executable, "-m", "runner", *TINY, *LAUNCHERS[request.param], *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    return call


def job_folders(tmp_path):
    return {path.name.split("=")[-1][:-9]: path.parent / path.name for path in tmp_path.glob("outputs/sweeps/s/*=*")}


def status(folder):
    return json.loads((folder / "summary.json").read_text())["status"]


@pytest.mark.slow
def test_a_death_and_a_failure_are_their_jobs_alone(start, tmp_path):
    (tmp_path / "methods/regularization").mkdir(parents=True)
    (tmp_path / "methods/doomed.py").write_text(DOOMED)
    option = "# @package _global_\ndoomed:\n  _target_: doomed.Doomed\n  how: live\n"
    (tmp_path / "methods/regularization/doomed.yaml").write_text(option)
    words = ("paths.extensions=methods", "paths.allowed_packages=[doomed]", "regularization=doomed", "train.epochs=2")
    process = start(*words, "doomed.how=die,fail,live")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    folders = job_folders(tmp_path)
    assert {how: status(folder) for how, folder in folders.items()} == {
        "die": "failed",
        "fail": "failed",
        "live": "completed",
    }
    assert "SIGKILL" in (folders["die"] / "error.txt").read_text()
    assert "RuntimeError: the device fell off" in (folders["fail"] / "error.txt").read_text()
    assert "status: completed" in (folders["live"] / "console.txt").read_text()
    before, table = out.split("\nSweep ")
    assert re.search(r"error: Traceback .*the device fell off", before)  # when it happens
    assert "SIGKILL" in before
    for how, word in (("die", "failed"), ("fail", "failed"), ("live", "completed")):
        assert re.search(rf"^job \d/3: \S*how={how}-\S+  {word}", before, re.MULTILINE), out
        assert re.search(rf"^[* ] +{how} .*{word}", table, re.MULTILINE), out
    assert "the device fell off" in table
    assert len((tmp_path / "outputs/sweeps/s/results.csv").read_text().splitlines()) == 4

    process = start(*words, "doomed.how=die,live", "sweep.retry_failed=false")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    assert re.search(r"^job 2/2: \S*how=live-\S+  completed, test accuracy \S+ % before$", out, re.MULTILINE), out
    assert not re.search(r" runs$", out, re.MULTILINE)


EDITOR = """
from pathlib import Path
from runner.methods.method import Method

class Editor(Method):
    def __init__(self, share: float, number: int) -> None:
        pass

    def apply(self, model, example_input, seed=0):
        return 1

    def on_step(self, progress):
        file = Path("methods/regularization/editor.yaml")
        file.write_text(file.read_text().replace("share: 0.25", "share: 0.5"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), *LAUNCHERS.values()], ids=["basic", *LAUNCHERS])
def test_every_job_has_the_settings_that_were_checked(tmp_path, launcher):
    """The first job changes a file of settings, as somebody may while a sweep runs; the jobs after it do not mind."""
    if launcher == LAUNCHERS["ray"] and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra-ray-launcher is not installed")
    (tmp_path / "methods/regularization").mkdir(parents=True)
    (tmp_path / "methods/editor.py").write_text(EDITOR)
    option = tmp_path / "methods/regularization/editor.yaml"
    option.write_text("# @package _global_\neditor:\n  _target_: editor.Editor\n  share: 0.25\n  number: 0\n")
    words = (
        "paths.extensions=methods",
        "paths.allowed_packages=[editor]",
        "regularization=editor",
        "train.max_steps=2",
    )
    alone = ("hydra.launcher.n_jobs=1",) if launcher == LAUNCHERS["joblib"] else launcher[1:]
    command = [sys.executable, "-m", "runner", *TINY, *launcher[:1], *alone, *words, "editor.number=1,2,3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "share: 0.5" in option.read_text()
    folders = job_folders(tmp_path)
    shares = {number: yaml.safe_load((folders[number] / "config.yaml").read_text())["editor"] for number in folders}
    assert {number: node["share"] for number, node in shares.items()} == {"1": 0.25, "2": 0.25, "3": 0.25}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["jobs_at_once", "joblib", "submitit"], indirect=True)
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # as `kill` does, and as a terminal's Ctrl-C
def test_ctrl_c_ends_all_jobs_with_their_checkpoints(start, tmp_path, send):
    process = start("train.epochs=2000", "norm=agc", "agc.clip=0.01,0.02,0.04")
    end = time.monotonic() + 200
    while len(list(tmp_path.glob("outputs/sweeps/s/*/checkpoints/last.pt"))) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)
    send(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 130, out
    begun = [folder for folder in job_folders(tmp_path).values() if (folder / "metrics.jsonl").is_file()]
    assert len(begun) >= 2
    assert {status(folder) for folder in begun} == {"interrupted"}
    assert out.splitlines()[-1].startswith("Go on with the sweep: python -m runner dataset=random")
    if send is os.kill:  # else a process of the launcher may not have come to its jobs, and is still to find it
        assert not list(tmp_path.glob("outputs/sweeps/s/.stop*"))


@pytest.fixture
def watch(tmp_path):
    jobs = [Job(f"a={number}-0", number, 3, tmp_path, (f"a={number}",)) for number in (1, 2, 3)]
    for job in jobs[1:]:
        job.path.mkdir()
    return LauncherWatch(jobs, tmp_path / ".stop")


def write(folder, **summary):
    (folder / "summary.json").write_text(json.dumps(summary))


def test_what_is_there_before_is_told_at_once_and_what_changes_later(watch, tmp_path, capsys):
    write(tmp_path / "a=2-0", status="completed", metrics={"accuracy": 0.983})
    write(tmp_path / "a=3-0", status="failed", error="of the time before")
    watch.start()
    try:
        assert capsys.readouterr().out == "job 2/3: a=2-0  completed, test accuracy 98.3 % before\n"
        (tmp_path / "a=1-0").mkdir()
        with hold(tmp_path / "a=1-0"):
            watch._look()
        assert capsys.readouterr().out == "job 1/3: a=1-0  runs\n"
        (tmp_path / "a=1-0/error.txt").write_text("Traceback\nRuntimeError: it fell off\n")
        write(tmp_path / "a=1-0", status="failed", error="RuntimeError: it fell off")
    finally:
        assert not watch.finish()
    said = capsys.readouterr().out
    assert said == "job 1/3: a=1-0  failed  0:00  3/3 done\nerror: Traceback RuntimeError: it fell off\n"


def test_the_first_signal_asks_the_jobs_to_stop_and_the_second_ends_the_wait(watch, capsys):
    before = signal.getsignal(signal.SIGINT)
    watch.start()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.stop.exists()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        assert watch.finish()
    assert signal.getsignal(signal.SIGINT) is before
    assert "Once more ends the wait" in capsys.readouterr().out


def test_the_pace_of_a_sweep(monkeypatch):
    """Two jobs of 100 steps of 10 images, one of 50 steps of 40: 4000 images; 1000 of them were there before."""
    clock = iter([0.0, 0.0, 20.0, 20.0, 40.0])
    monkeypatch.setattr("runner.tracking.pace.time.monotonic", lambda: next(clock))
    pace = Pace({"a": (100, 10), "b": (100, 10), "c": (50, 40)})
    pace.note("z", RunState("running", 7))  # done before, and not of this sweep's work
    pace.note("a", RunState("running", 100))
    pace.begin()
    share, left = pace.read()
    assert (share, left) == (0.25, None)
    pace.note("a", RunState("completed"))
    pace.note("b", RunState("running", 50))
    share, left = pace.read()  # 500 images in 20 s, 2500 are left
    assert share == pytest.approx(1500 / 4000)
    assert left == pytest.approx(20 * 2500 / 500)
    pace.note("b", RunState("failed", 50))  # 2000 are left
    share, left = pace.read()
    assert share == pytest.approx(1500 / 3500)
    assert left == pytest.approx(20 * 2000 / 500)
    for name in "bc":
        pace.note(name, RunState("completed"))
    assert pace.read() == (1.0, 0.0)
