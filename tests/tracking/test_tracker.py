from __future__ import annotations

import io

import pytest
from rich.console import Console

from runner.results.metrics import read_rows
from runner.tracking.console import RunConsole
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.tracker import Tracker
from runner.tracking.wandb_run import WandbRun

ROW = {"step": 10, "epoch": 1, "split": "train", "loss": 1.25}


@pytest.fixture
def events() -> list[tuple]:
    """What W&B was told, in order."""
    return []


@pytest.fixture
def tracker(tmp_path, monkeypatch, events) -> Tracker:
    monkeypatch.setenv("TERM", "xterm")
    wandb = WandbRun(mode="disabled", folder=tmp_path, project="p", run_id="a", report=print)
    monkeypatch.setattr(wandb, "log", lambda row: events.append(("log", row)))
    monkeypatch.setattr(wandb, "summary", lambda values: events.append(("summary", values)))
    monkeypatch.setattr(wandb, "finish", lambda code=0: events.append(("finish", code)))
    console = RunConsole(console=Console(file=io.StringIO(), force_terminal=True, width=80))
    return Tracker(metrics=MetricsLog(tmp_path / "metrics.jsonl"), wandb=wandb, console=console)


def output(tracker: Tracker) -> str:
    return tracker.console.console.file.getvalue()


def cursor_is_shown(tracker: Tracker) -> bool:
    return output(tracker).rfind("\x1b[?25h") > output(tracker).rfind("\x1b[?25l") > -1


def test_the_metrics_file_comes_first(tracker, monkeypatch):
    def fail(row: dict) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracker.wandb, "log", fail)
    with pytest.raises(KeyboardInterrupt):
        tracker.log(ROW)
    assert read_rows(tracker.metrics.path) == [ROW]


def test_a_whole_run(tracker, events, monkeypatch):
    monkeypatch.setattr(tracker.wandb, "how_to_look", lambda: ["wandb leet x", "wandb sync y"])
    with tracker:
        tracker.start("resnet18 on digits", [("model", "resnet18")], job=(1, 2))
        tracker.log(ROW)
        tracker.progress(5, 10, 1, 1, loss=0.5, score=("accuracy", 0.5), lr=0.1, images_per_second=100.0)
        tracker.epoch({"epoch": 1, "epochs": 1})
        tracker.message("odd", "warning")
        tracker.finish("diverged", [("time", "0:10")], summary={"best": {}})
    assert events[:3] == [("log", ROW), ("summary", {"best": {}, "status": "diverged"}), ("finish", 0)]
    text = output(tracker)
    for part in ("resnet18 on digits", "job 1/2", "epoch 1/1", "warning", "diverged", "0:10", "wandb sync y"):
        assert part in text
    assert cursor_is_shown(tracker)


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("diverged", 0), ("failed", 1), ("interrupted", 130)])
def test_the_exit_code_says_whether_there_is_a_result(tracker, events, status, code):
    tracker.finish(status, [])
    assert events[-1] == ("finish", code)
    assert "W&B" not in output(tracker)  # it is disabled: nothing to look at


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1), (SystemExit, 1)])
def test_an_exception_passes_through_and_leaves_nothing_open(tracker, events, error, code):
    def train() -> None:
        with tracker:
            tracker.progress(5, 10, 1, 1, loss=0.5)
            raise error

    with pytest.raises(error):
        train()
    assert cursor_is_shown(tracker)
    assert events == [("finish", code)]


def test_wandb_is_closed_even_if_the_terminal_is_gone(tracker, events, monkeypatch):
    def gone() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(tracker.console, "stop", gone)
    with pytest.raises(BrokenPipeError), tracker:
        pass
    assert events == [("finish", 1)]
