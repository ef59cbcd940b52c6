"""What would run and for how long, on a terminal and elsewhere."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.report.plan_table import PlannedRun, print_plan

NOTES = {"measured here": "a few steps", "from finished jobs": "their seconds a step"}
COMMON = ("model=nf_resnet50", "norm=agc", "dataset=imagenet", "dataset.root=/a/very/long/path/to/the/files")


def runs():
    words = [(f"agc.clip={clip}", "train.global_batch_size=1024") for clip in (0.005, 0.01, 0.02, 0.04, 0.08)]
    first, second, third, fourth, fifth = [(*COMMON, *each) for each in words]
    return [
        PlannedRun(first, "completed", "completed, test accuracy 98.3 %"),
        PlannedRun(second, "failed", "failed, left so"),
        PlannedRun(third, "interrupted", "interrupted at step 1500 of 90000", 7200.0, 0.08, "from finished jobs"),
        PlannedRun(fourth, "to do", "to do", 3661.0, 12.4, "measured here"),
        PlannedRun(fifth, "running", "running at step 7 of 90000", 500.0, 0.08, "from finished jobs"),
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, _environ={})
    print_plan(runs(), title="Sweep [s]", notes=NOTES, console=console)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert lines[0].strip() == "Sweep [s]"
    assert [line.split()[:2] for line in lines[5:10]] == [
        ["0.005", "completed,"],
        ["0.01", "failed,"],
        ["0.02", "interrupted"],
        ["0.04", "to"],
        ["0.08", "running"],
    ]
    assert lines[3].split()[0] == "clip"  # the key is shortened, and told below
    assert "columns: agc.clip" in text
    assert "Time left in all, one after the other: 3:01:01" in text  # 7200 + 3661 s; another process has the rest
    assert "A step takes up to 12 s." in text


def test_plain_lines_elsewhere():
    console = Console(file=io.StringIO())
    print_plan(runs(), title="Sweep [s]", notes=NOTES, console=console)
    text = console.file.getvalue()
    assert text.isascii()
    rows = [line.split() for line in text.splitlines()]
    assert rows[1][0] == "agc.clip"
    assert rows[2] == ["0.005", "completed,", "test", "accuracy", "98.3", "%", "-", "-"]
    assert rows[3][1:] == ["failed,", "left", "so", "-", "-"]
    assert " ".join(rows[4][1:]) == "interrupted at step 1500 of 90000 2:00:00 from finished jobs"
    assert " ".join(rows[5][1:]) == "to do 1:01:01 measured here"
    assert " ".join(rows[7]) == "5 jobs: 1 completed, 1 failed, 1 interrupted, 1 to do, 1 running"
    assert f"in common: {' '.join(COMMON)} train.global_batch_size=1024" in text


def test_a_run_alone_whose_time_is_not_known():
    console = Console(file=io.StringIO())
    print_plan([PlannedRun(("train.max_steps=0",), "to do", "to do")], title="A new run", notes=NOTES, console=console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert rows[1][0] == "train.max_steps"
    assert rows[2] == ["0", "to", "do", "not", "known", "-"]
    assert len(rows) == 3
