from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.tracking import console as module
from runner.tracking.console import RunConsole
from runner.tracking.terminal import terminal as console_to

ROWS = [
    ("model", "resnet18, 11.2 M parameters"),
    ("norm", "ghost_batchnorm: 20 batch norms, ghost_batch_size=32; from norm=[ghost_batchnorm,agc] [bold]"),
    ("folder", "outputs/runs/" + "a-long-name-" * 8),
]
EPOCH = {
    "epoch": 3,
    "epochs": 12,
    "train": {"loss": 0.4123, "accuracy": 0.871},
    "validation": {"loss": 0.3, "accuracy": 0.91},
    "lr": 0.0512,
    "images_per_second": 812.4,
    "seconds": 75,
    "best": False,
}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock set by hand, and a terminal that is not described by the environment of the tests."""
    for key in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def terminal(width: int = 80) -> tuple[RunConsole, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system="standard")
    return RunConsole(console=console), stream


def piped() -> tuple[RunConsole, io.StringIO]:
    stream = io.StringIO()
    return RunConsole(console=console_to(file=stream)), stream


def shown(stream: io.StringIO) -> list[str]:
    """The lines of a terminal's stream without colours and cursor movements."""
    return re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()))


def play(run: RunConsole, clock: SimpleNamespace) -> None:
    run.start("resnet18 on digits", ROWS, job=(2, 6))
    for step in (1, 2, 3, 4):
        clock.now += 40
        run.progress(step, 4, (step + 1) // 2, 2, 0.5, ("accuracy", 0.871), 0.0512, 812.4)
    run.epoch({**EPOCH, "best": True})
    run.epoch({**EPOCH, "epoch": 4})
    run.message("a note [that] is rather long " * 5)
    run.message("something is odd", "warning")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_wider_than_the_terminal(clock, width):
    run, stream = terminal(width)
    play(run, clock)
    run.finish("completed", [("test accuracy", "97.8 %")])
    assert max(cell_len(line) for line in shown(stream)) <= width
    assert max(cell_len(line) for line in shown(stream)) <= 100
    bars = [line for line in shown(stream) if "loss 0.500" in line]
    assert all(("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line) == (width >= 80) for line in bars)  # no room, no bar


def test_the_panel_shows_title_job_and_every_row_as_written():
    run, stream = terminal(200)
    run.start("resnet18 on digits", ROWS, job=(2, 6))
    text = stream.getvalue()
    lines = shown(stream)
    assert "resnet18 on digits  job 2/6" in lines[1]
    assert "norm=[ghost_batchnorm,agc] [bold]" in " ".join(line.strip("│ ") for line in lines)  # no markup is read
    assert "\x1b[" in text
    run, stream = terminal()
    run.start("resnet18 on digits", ROWS)
    assert "job" not in shown(stream)[1]


def test_the_epochs_stand_in_columns_under_one_header():
    run, stream = terminal()
    run.epoch({**EPOCH, "best": True})
    run.epoch({**EPOCH, "epoch": 10, "validation": {"loss": 12.5, "accuracy": 1.0}, "lr": 1e-05})
    groups, header, first, second = [line for line in shown(stream) if line.strip()]
    assert groups.split() == ["train", "validation"]
    assert header.split() == ["epoch", "loss", "accuracy", "loss", "accuracy", "lr", "images/s", "time"]
    assert first.split() == ["3/12", "0.412", "87.1", "%", "0.300", "91.0", "%", "*", "0.0512", "812", "1:15"]
    assert second.split() == ["10/12", "0.412", "87.1", "%", "12.500", "100.0", "%", "1e-05", "812", "1:15"]
    for heading in ("lr", "images/s", "time"):
        end = header.index(heading) + len(heading)
        assert first[:end].rstrip() == first[:end]
        assert first[end : end + 1].strip() == ""
        assert second[end : end + 1].strip() == ""
    assert groups.rstrip().endswith("validation")
    assert len(groups.rstrip()) == header.rindex("accuracy") + len("accuracy")


def test_mean_iou_and_missing_metrics():
    run, stream = terminal()
    run.epoch({"epoch": 1, "epochs": 2, "validation": {"loss": float("nan"), "mean_iou": 0.5}})
    _, header, row = [line for line in shown(stream) if line.strip()]
    assert header.count("mean IoU") == 2
    assert row.split() == ["1/2", "-", "-", "nan", "50.0", "%", "-", "-", "-:--"]


def test_the_bars_show_epoch_and_total(clock):
    run, stream = terminal()
    run.start("x", [], job=(2, 6))
    run.progress(0, 40, 1, 4, 1.0, ("accuracy", 0.5), 0.1, 100.0)
    clock.now += 30
    run.progress(15, 40, 2, 4, 0.4123, ("accuracy", 0.871), 0.0512, 812.4)
    run.stop()
    first, second = [line for line in shown(stream) if "%" in line][-2:]
    assert re.fullmatch(r" epoch 2/4 \S+  50 %  loss 0.412  accuracy 87.1 %", first.rstrip())
    assert re.fullmatch(r" job 2/6   \S+  37 %  lr 0.0512  812 images/s  0:50 left", second.rstrip())


def test_a_run_cut_by_max_steps_shows_its_part_of_the_epoch():
    run, stream = terminal()
    run.progress(10, 20, 1, 5, steps_per_epoch=100)
    run.stop()
    first, second = [line for line in shown(stream) if "%" in line][-2:]
    assert " 10 %" in first
    assert " 50 %" in second


def test_the_display_is_drawn_four_times_a_second_at_most(clock):
    run, stream = terminal()
    for step in range(1000):
        clock.now += 0.001
        run.progress(step, 1000, 1, 1, 0.5, ("accuracy", 0.5), 0.1, 100.0)
    run.stop()
    assert sum("epoch 1/1" in line for line in shown(stream)) <= 5


def test_the_terminal_may_be_resized(clock):
    run, stream = terminal(120)
    for width in (120, 50, 20, 5, 80):
        run.console.width = width
        clock.now += 1
        run.progress(1, 2, 1, 1, 0.5, ("accuracy", 0.5), 0.1, 100.0)
    run.epoch(EPOCH)
    run.stop()
    assert any("3/12" in line for line in shown(stream))


def test_stop_gives_the_cursor_back_and_may_be_repeated():
    run, stream = terminal()
    run.stop()
    run.progress(1, 2, 1, 1, 0.5, ("accuracy", 0.5), 0.1, 100.0)
    assert stream.getvalue().rfind("\x1b[?25l") > stream.getvalue().rfind("\x1b[?25h")
    run.stop()
    run.stop()
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_the_result_can_be_copied():
    run, stream = terminal()
    command = "wandb sync outputs/wandb/offline-run-20260101_000000-" + "name-" * 10
    run.finish("diverged", [("time", "1:15"), ("W&B", f"wandb leet outputs/wandb\n{command}")])
    lines = shown(stream)
    assert lines[1].startswith("diverged ─")
    assert lines[2] == " time  1:15"
    assert lines[3] == " W&B   wandb leet outputs/wandb"
    assert lines[4] == f"       {command}"


def test_plain_lines_one_an_event(clock):
    run, stream = piped()
    play(run, clock)
    run.finish("completed", [("test accuracy", "97.8 %"), ("W&B", "wandb leet x\nwandb sync y")])
    text = stream.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    speed = "lr 0.0512  812 images/s"
    assert [line.rstrip() for line in text.splitlines()] == [
        "job 2/6: resnet18 on digits",
        *(f"  {label}: {value}" for label, value in ROWS),
        f"step 2/4  epoch 1/2  loss 0.500  accuracy 87.1 %  {speed}  1:20 left",
        f"step 3/4  epoch 2/2  loss 0.500  accuracy 87.1 %  {speed}  0:40 left",
        f"step 4/4  epoch 2/2  loss 0.500  accuracy 87.1 %  {speed}  0:00 left",
        f"epoch 3/12  train loss 0.412 acc 87.1 %  val loss 0.300 acc 91.0 %  {speed}  time 1:15  best",
        f"epoch 4/12  train loss 0.412 acc 87.1 %  val loss 0.300 acc 91.0 %  {speed}  time 1:15",
        f"note: {'a note [that] is rather long ' * 5}".rstrip(),
        "warning: something is odd",
        "status: completed",
        "  test accuracy: 97.8 %",
        "  W&B: wandb leet x",
        "  W&B: wandb sync y",
    ]


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    run, stream = terminal()
    play(run, clock)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().isascii()


def test_a_terminal_that_only_knows_ascii_gets_plain_lines(clock):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    run = RunConsole(console=Console(file=stream, width=30, force_terminal=True))
    play(run, clock)
    run.finish("completed", [])
    assert run.plain


def test_a_message_is_shown_as_written():
    run, stream = terminal()
    run.message("norm=[agc,none] [bold] :bug:", "error")
    assert shown(stream)[0].rstrip() == " error  norm=[agc,none] [bold] :bug:"


def test_other_characters_and_line_ends_stay_on_one_plain_line():
    run, stream = piped()
    run.message("größer\nthan 3", "error")
    assert stream.getvalue() == "error: gr\\xf6\\xdfer than 3\n"


def test_an_evaluation_after_training_is_shown_at_once_and_then_now_and_then(clock):
    run, stream = terminal()
    for images in range(0, 500, 100):
        run.evaluation("test of best.pt", images, 500)
        clock.now += 0.2
    lines = [line for line in shown(stream) if "test of best.pt" in line]
    assert [line.split("%")[1].split()[0] for line in lines] == ["0", "100", "300"]
    run.finish("completed", [])
    assert shown(stream)[-3].startswith("completed")


def test_elsewhere_an_evaluation_has_a_line_only_if_it_takes_long(clock):
    run, stream = piped()
    clock.now += module.PLAIN_PROGRESS_SECONDS  # of training
    run.progress(1, 2, 1, 1)
    for images in range(0, 500, 100):
        run.evaluation("test of best.pt", images, 500)
        clock.now += 10
    assert stream.getvalue() == "test of best.pt: 300/500 images\n"


def test_what_is_prepared_is_said_on_a_terminal_alone():
    run, stream = terminal()
    run.preparing("resnet18 on digits")
    assert shown(stream) == ["Preparing resnet18 on digits ...", ""]
    run, stream = piped()
    run.preparing("resnet18 on digits")
    assert stream.getvalue() == ""
