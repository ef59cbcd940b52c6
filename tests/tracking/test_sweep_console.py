"""The output of a sweep whose jobs run in other processes, on terminals of 80 and 120 columns and in a pipe."""

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.results.job import Job
from runner.results.run_state import RunState
from runner.tracking.sweep_console import Progress, SweepConsole

DONE = RunState("completed", 0, {"status": "completed", "metrics": {"accuracy": 0.983}})
SCENES = RunState("completed", 0, {"status": "completed", "metrics": {"mean_iou": 0.283}})


def jobs_of(number, total):
    name = f"norm=ghost_batchnorm,weight_standardization,ghost_batchnorm.ghost_batch_size=16,seed={number}-0123abcd"
    return Job(name, number, total, Path("outputs/sweeps/s"), (f"seed={number}",))


def shown(total=12, *, width=80, terminal=True, labels="drop_rate=0.1 seed={}"):
    """A console that writes into a text, that text, and jobs."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    jobs = [jobs_of(number, total) for number in range(1, total + 1)]
    return SweepConsole({job.name: labels.format(job.number) for job in jobs}, console=console), file, jobs


def lines(file):
    return re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("labels", ["seed={}", "a_setting_with_a_long_name=[one_value,and_another] seed={} 模型=大"])
def test_a_line_of_a_job_has_its_name_score_and_time(width, labels):
    console, file, jobs = shown(1000, width=width, labels=labels)
    console.ended(jobs[0], DONE, done=1, seconds=None)
    console.running(jobs[1], "elsewhere")
    console.running(jobs[2])
    console.ended(jobs[3], SCENES, done=2, seconds=62)
    console.ended(jobs[4], RunState("diverged"), done=1000, seconds=36_000)
    found = lines(file)
    assert [cell_len(line.rstrip()) <= width for line in found] == [True] * 4
    name = [labels.format(number)[-6:] for number in (1, 2, 4, 5)]  # the end of a name says most
    patterns = [
        rf" +1/1000  .*{name[0]} +completed +test accuracy 98.3 % +before",
        rf" +.*{name[1]} +running elsewhere",
        rf" +2/1000  .*{name[2]} +completed +test mean IoU 28.3 % +1:02",
        rf" 1000/1000  .*{name[3]} +diverged +10:00:00",
    ]
    for pattern, line in zip(patterns, found, strict=True):
        assert re.fullmatch(pattern, line.rstrip()), line
    ends = {cell_len(line.rstrip()) for line in (found[0], found[2], found[3])}
    assert len(ends) == 1
    assert ends <= {width, 100}


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_display_has_the_running_jobs_and_the_time_left(width):
    console, file, jobs = shown(width=width)
    running = [(console.label(job), 0.426) for job in jobs[:9]]
    console.progress(Progress(running[:2], 3, 12, 0.318, None))
    first = lines(file)
    assert re.search(r"^ 3/12 done .* 31 % -:-- left", "\n".join(first), re.MULTILINE)
    assert " running: drop_rate=0.1 seed=1 42 %, drop_rate=0.1 seed=2 42 %" in first[-1]
    console.progress(Progress(running, 3, 12, 0.318, 3725))
    last = lines(file)[-2:]
    console.stop()
    assert last[0].rstrip().endswith("31 % 1:02:05 left")
    assert re.search(r"running: drop_rate=0.1 seed=1 42 %, .* and \d more$", last[1].rstrip())
    named = last[1].count("42 %")
    assert f"and {9 - named} more" in last[1]
    assert max(map(len, (line.rstrip() for line in last))) < width


def test_long_names_of_running_jobs_are_cut():
    console, file, jobs = shown(labels="a_setting_with_a_long_name=[one_value,and_another] seed={}")
    console.progress(Progress([(console.label(job), 0.0) for job in jobs[:4]], 0, 4, 0.0, None))
    assert "no job is running" not in file.getvalue()
    console.progress(Progress([], 0, 4, 0.0, None))
    assert " no job is running yet" in file.getvalue()
    console.stop()
    assert "running: …and_another] seed=1 0 %, …and_another] seed=2 0 %, and 2" in "\n".join(lines(file))


def test_a_pipe_has_a_line_of_ascii_for_each_event():
    console, file, jobs = shown(3, terminal=False, labels="…")
    console.running(jobs[0])
    console.running(jobs[1], "elsewhere")
    console.progress(Progress([("…", 0.5)], 0, 3, 0.1, 12.0))
    console.ended(jobs[0], DONE, done=1, seconds=None)
    console.ended(jobs[2], DONE, done=2, seconds=61.7)
    console.message("on\ntwo lines", "error")
    console.stop()
    assert file.getvalue().isascii()
    assert file.getvalue().splitlines() == [
        f"job 1/3: {jobs[0].name}  runs",
        f"job 2/3: {jobs[1].name}  running elsewhere",
        f"job 1/3: {jobs[0].name}  completed, test accuracy 98.3 % before",
        f"job 3/3: {jobs[2].name}  completed, test accuracy 98.3 %  1:02  2/3 done",
        "error: on two lines",
    ]
