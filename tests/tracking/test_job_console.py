"""A job of a sweep on a terminal: its lines in console.txt, the live display of the sweep above all."""

import io
import pickle
import re

import pytest
from rich.console import Console

from runner.results.job import Job
from runner.results.run_state import RunState
from runner.tracking.job_console import JobConsole
from runner.tracking.pace import Pace
from runner.tracking.sweep_console import SweepConsole


@pytest.fixture
def jobs(tmp_path):
    jobs = [Job(f"clip={n},seed=0-0123abcd", n, 4, tmp_path, (f"agc.clip={n}",)) for n in (1, 2, 3, 4)]
    for job in jobs:
        job.path.mkdir()
    return jobs


@pytest.fixture
def sweep(jobs):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None, _environ={})
    work = {job.name: (10, 8) for job in jobs}
    return SweepConsole({job.name: f"clip={job.number}" for job in jobs}, Pace(work), console=screen)


def score(value):
    return RunState("completed", 0, {"status": "completed", "best": {"accuracy": value}, "metrics": {}})


def test_the_lines_of_a_job_are_in_its_folder_and_the_terminal_has_the_sweep(sweep, jobs):
    sweep.ended(jobs[0], score(0.912), seconds=3)
    sweep.ended(jobs[1], RunState("failed"), seconds=1)
    screen = sweep.console.file
    screen.truncate(screen.seek(0))
    console = JobConsole(sweep, jobs[2])
    console.start("a title", [("model", "resnet20")], job=(3, 4))
    console.progress(5, 10, 2, 3, 0.25, ("accuracy", 0.875), lr=0.1, images_per_second=100.0)
    console.message("told in the file alone")
    console.message("the loss is odd", "warning")
    console.finish("completed", [("test", "accuracy 90.0 %")])
    console.stop()
    shown = screen.getvalue()
    assert re.search(r" 2/4 done .*  50 % \d:\d\d left", shown)  # 10 and 5 of 30 steps: a failed job has none left
    assert " 1 failed, best validation accuracy 91.2 %: clip=1" in shown
    assert " running: clip=3 50 %, epoch 2/3, loss 0.250, accuracy 87.5 %" in shown
    assert "clip=3: the loss is odd" in shown
    assert "told in the file alone" not in shown
    assert (jobs[2].path / "console.txt").read_text().splitlines() == [
        "job 3/4: a title",
        "  model: resnet20",
        "note: told in the file alone",
        "warning: the loss is odd",
        "status: completed",
        "  test: accuracy 90.0 %",
    ]


def test_a_copy_goes_to_the_process_of_a_job(sweep, jobs):
    sweep.ended(jobs[0], score(0.912), seconds=3)
    copy = pickle.loads(pickle.dumps(sweep))
    assert copy.label(jobs[1]) in (jobs[1].name, "clip=2")  # without a terminal the whole name
    copy.console = sweep.console
    copy.at_work(jobs[1], 0, "begins")
    assert "best validation accuracy 91.2 %: clip=1" in sweep.console.file.getvalue()
    copy.stop()
