from __future__ import annotations

import io
import json
import re
import statistics
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.report.arm_table import best_arm
from runner.report.sweep_table import print_sweep
from runner.results.arms import arms_of
from runner.results.run_lock import hold
from runner.results.runs import read_runs

COMMON = ["norm=agc", "model=nf_resnet50"]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A folder of a sweep and a function that adds a job to it."""
    for key in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(tmp_path)

    def add(changes: list[str], accuracy: float | None = None, **summary: object):
        folder = tmp_path / "sweep" / ",".join(changes)
        folder.mkdir(parents=True)
        content = {
            "status": "completed",
            "metrics": {"accuracy": 0.9, "loss": 0.3} if accuracy else {},
            "best": {"accuracy": accuracy, "loss": 0.25, "epoch": 3} if accuracy else {},
            "throughput": {"images_per_second": 812.4},
            "error": None,
            "overrides": [*COMMON, *changes],
            **summary,
        }
        (folder / "summary.json").write_text(json.dumps(content))
        return folder

    return add


def on_terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True)


def lines(console: Console) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).split("\n")


def six_jobs(sweep) -> None:
    sweep(["agc.clip=0.005", "train.global_batch_size=256"], 0.92)
    sweep(["agc.clip=0.005", "train.global_batch_size=1024"], 0.93)
    sweep(["agc.clip=0.01", "train.global_batch_size=256"], 0.95)
    sweep(["agc.clip=0.01", "train.global_batch_size=1024"], 0.99, status="diverged", error="loss nan at step 120")
    sweep(
        ["agc.clip=0.02", "train.global_batch_size=256"],
        status="failed",
        error="\nCUDA out of memory\nmore" + "x" * 999,
    )
    Path("sweep/agc.clip=0.1").mkdir()
    Path("sweep/agc.clip=0.1/metrics.jsonl").touch()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no summary.json"),
        ("", "cannot be read"),
        ('{"status": "comp', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("[1]", "not a JSON object"),
        ('{"metrics": {}}', "no status"),
    ],
)
def test_an_unreadable_job_is_listed_with_the_reason(sweep, content, reason):
    folder = sweep(["a=1"], 0.9)
    (folder / "config.yaml").write_text("")
    (folder / "summary.json").unlink()
    if content is not None:
        (folder / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    sweep(["a=2"], 0.8)
    runs = read_runs(["sweep"])
    status = "interrupted" if content is None else "unreadable"
    assert [run.status for run in runs] == [status, "completed"]
    assert reason in runs[0].error
    console = on_terminal()
    print_sweep(runs, console=console)
    assert any(line.startswith(f"{status}  a=1") for line in lines(console))


def best_of(runs):
    """The folder of the best arm's only run."""
    arm = best_arm(arms_of(runs)[1])
    return arm and arm.runs[0].folder.name


def test_the_best_is_a_completed_one_by_validation_then_loss_then_order(sweep):
    six_jobs(sweep)
    runs = read_runs(["sweep"])
    assert best_of(runs) == "agc.clip=0.01,train.global_batch_size=256"  # not the diverged 0.99
    assert best_of([]) is None
    assert best_of([run for run in runs if run.status != "completed"]) is None
    for number, loss in enumerate((0.3, 0.2, 0.2)):
        sweep([f"z={number}"], 0.97, best={"accuracy": 0.97, "loss": loss, "epoch": 1})
    assert best_of(read_runs(["sweep"])) == "z=1"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_on_a_terminal(sweep, width):
    six_jobs(sweep)
    console = on_terminal(width)
    print_sweep(read_runs(["sweep"]), title="Sweep [agc] :bug:", to_do=list("abcdefg"), console=console)
    text = lines(console)
    assert max(map(cell_len, text)) <= width
    assert text[1].strip() == "Sweep [agc] :bug:"
    start = next(number for number, line in enumerate(text) if "───" in line)
    rows = [
        line.split() for line in text[start + 1 : text.index(next(line for line in text if "columns:" in line)) - 1]
    ]
    assert rows == [
        ["0.005", "256", "92.0", "90.0", "812", "completed"],
        ["0.005", "1024", "93.0", "90.0", "812", "completed"],
        ["★", "0.01", "256", "95.0", "90.0", "812", "completed"],
        ["0.01", "1024", "-", "-", "812", "diverged"],
        ["0.02", "256", "-", "-", "812", "failed"],
    ]
    points = {line.index(".") for line in text[start + 1 : start + 6]}
    assert len(points) == 1  # of agc.clip
    notes = [line.strip() for line in text if line.strip()]
    assert "columns: agc.clip, train.global_batch_size" in notes
    assert "in common: norm=agc model=nf_resnet50" in notes
    assert "★ best mean on the validation split, among the arms whose runs all have a" in " ".join(notes)
    end = next(number for number, line in enumerate(text) if line.startswith("diverged "))
    killed = ["interrupted  agc.clip=0.1", "it has no summary.json: killed, or running on another machine"]
    assert text[end : end + 2] == [
        "diverged  agc.clip=0.01,train.global_batch_size=1024: loss nan at step 120",
        "failed  agc.clip=0.02,train.global_batch_size=256: CUDA out of memory",
    ]
    assert text[end + 2 : end + 4] == (
        [killed[0], f"             {killed[1]}"] if width == 80 else [": ".join(killed), "to do  a"]
    )
    assert [line.rstrip() for line in text if "to do" in line] == [
        *(f"to do  {name}" for name in "abcde"),
        "and 2 more jobs to do",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_what_is_too_wide_is_cut_in_its_widest_setting(sweep, width):
    for long in ("a", 70 * "b"):
        for clip in (0.01, 0.02):
            sweep([f"agc.clip={clip}", f"dataset.a_very_long_name={long}"], 0.9)
    console = on_terminal(width)
    print_sweep(read_runs(["sweep"]), console=console)
    text = lines(console)
    start = next(number for number, line in enumerate(text) if "───" in line)
    rows = text[start + 1 : start + 5]
    assert [bool(re.search(r"0.01 .*90.0 +90.0 +812", row)) for row in rows] == [True, True, False, False]
    assert [bool(re.search(r" b+… ", row)) for row in rows] == [False, True, False, True]
    assert all(cell_len(row) <= width for row in rows)


def test_keys_that_end_alike_are_not_shortened(sweep):
    for a in (1, 2):
        sweep([f"train.eps={a}", f"agc.eps={a}", f"optimizer.lr={a}"], 0.9)
    console = on_terminal()
    print_sweep(read_runs(["sweep"]), console=console)
    head = next(line for line in lines(console) if "train.eps" in line).split()
    assert head[:3] == ["train.eps", "agc.eps", "lr"]


def test_one_job_has_a_row(sweep):
    sweep(["agc.clip=0.01"], 0.9)
    console = on_terminal()
    print_sweep(read_runs(["sweep"]), console=console)
    text = "\n".join(lines(console))
    assert re.search("^ +90.0 +90.0 +812", text, re.MULTILINE)
    assert "in common" not in text


def test_segmentation(sweep):
    sweep(["a=1"], 0.5, metrics={"mean_iou": 0.44, "loss": 1.0}, best={"mean_iou": 0.45, "loss": 1.0, "epoch": 2})
    console = on_terminal()
    print_sweep(read_runs(["sweep"]), console=console)
    text = "\n".join(lines(console))
    assert "mean IoU" in text
    assert re.search("45.0 +44.0", text)


def test_plain_lines_where_there_is_no_terminal(sweep):
    six_jobs(sweep)
    console = Console(file=io.StringIO())
    print_sweep(read_runs(["sweep"]), title="Sweep [agc] :bug:", console=console)
    text = console.file.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.strip()]
    assert rows[0].strip() == "Sweep [agc] :bug:"
    assert re.split(r"\s{2,}", rows[1].strip()) == [
        "agc.clip",
        "train.global_batch_size",
        "validation accuracy (%)",
        "test accuracy (%)",
        "images/s",
        "status",
    ]
    assert rows[2].split() == ["0.005", "256", "92.0", "90.0", "812", "completed"]
    assert [row.startswith("*") for row in rows[2:7]] == [False, False, True, False, False]
    assert rows[7] == "in common: norm=agc model=nf_resnet50"
    assert rows[9] == "diverged  agc.clip=0.01,train.global_batch_size=1024: loss nan at step 120"
    assert len(rows) == 12


def test_no_jobs(tmp_path):
    console = on_terminal()
    assert read_runs([tmp_path]) == []
    print_sweep([], console=console)
    assert "Sweep" in console.file.getvalue()


def test_what_was_chosen_on_the_test_split_is_labelled_and_not_compared_with_the_rest(sweep):
    on_test = {"data": {"validation_source": "test"}}
    sweep(["seed=0"], 0.92, **on_test)
    sweep(["seed=1"], 0.95, **on_test)
    assert best_of(read_runs(["sweep"])) is None  # seeds alone
    sweep(["agc.clip=1"], 0.95, **on_test)
    runs = read_runs(["sweep"])
    assert best_of(runs) == "agc.clip=1"
    console = on_terminal()
    print_sweep(runs, console=console)
    shown = " ".join("\n".join(lines(console)).split())
    assert "★ best mean on the test split, which stands in for validation" in shown
    assert "the validation score was chosen on the test split" in shown
    sweep(["agc.clip=2"], 0.90)
    assert best_of(read_runs(["sweep"])) is None


def test_what_no_job_has_is_no_column(sweep):
    for case in "ab":
        sweep([f"case={case}"], metrics={}, best={}, throughput={})
    console = Console(file=io.StringIO())
    print_sweep(read_runs(["sweep"]), console=console)
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert rows[1:4] == [["case"], ["a"], ["b"]]


def test_a_job_that_runs_is_no_error(sweep):
    folder = sweep(["a=1"], 0.9)
    sweep(["a=2"], 0.8)
    (folder / "summary.json").unlink()
    (folder / "config.yaml").write_text("seed: 0")
    (folder / "overrides.yaml").write_text("[norm=agc, model=nf_resnet50, a=1]")
    console = Console(file=io.StringIO())
    with hold(folder):
        print_sweep(read_runs(["sweep"]), console=console)
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    [row] = [row for row in rows if "running" in row]
    assert row == ["1", "-", "-", "-", "running"]


@pytest.mark.parametrize("plain", [True, False])
def test_means_and_deviations_over_the_seeds(sweep, plain):
    for clip, scores in ((0.01, (0.9, 0.92, 0.94)), (0.02, (0.8, 0.8, 0.83))):
        for seed, score in enumerate(scores):
            sweep([f"agc.clip={clip}", f"seed={seed}"], score)
    console = Console(file=io.StringIO()) if plain else on_terminal(80)
    print_sweep(read_runs(["sweep"]), console=console)
    text = console.file.getvalue() if plain else "\n".join(lines(console))
    assert max(map(cell_len, text.splitlines())) <= 80 or plain
    assert text.isascii() or not plain
    [row] = [line.split() for line in text.splitlines() if " 0.01" in line]
    sign = "+-" if plain else "±"
    mean, deviation = 100 * statistics.mean(score := [0.9, 0.92, 0.94]), 100 * statistics.stdev(score)
    assert row[:5] == ["*" if plain else "★", "0.01", f"{mean:.1f}", sign, f"{deviation:.1f}"]
