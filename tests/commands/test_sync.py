"""`runner sync`: which of W&B's folders it uploads."""

import pytest

from runner.commands import sync
from runner.commands.sync import main


@pytest.fixture
def outputs(tmp_path, make_run, monkeypatch):
    """A run and a sweep of two jobs, of which one went on once."""
    monkeypatch.chdir(tmp_path)
    for run_id, place in (("a-1", "runs/a"), ("b-1", "sweeps/s/b"), ("b-2", "sweeps/s/c")):
        folder = make_run(f"x={run_id}", wandb_id=run_id)
        (tmp_path / "outputs" / place).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(tmp_path / "outputs" / place)
    for name in ("1-a-1", "1-b-1", "2-b-1", "1-b-2", "1-z"):
        (tmp_path / f"outputs/wandb/offline-run-{name}").mkdir(parents=True)
    return tmp_path / "outputs"


@pytest.fixture
def uploads(monkeypatch):
    """The folders of each call of `wandb sync`, which is not made."""
    calls = []
    monkeypatch.setattr(sync.subprocess, "call", lambda command: calls.append(command[4:]) or 0)
    monkeypatch.setattr(sync, "has_key", lambda: True)
    return calls


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("a", ["1-a-1"]),
        ("outputs/runs/a", ["1-a-1"]),
        ("s", ["1-b-1", "2-b-1", "1-b-2"]),
        ("s/c", ["1-b-2"]),
    ],
)
def test_a_run_a_job_and_a_sweep(outputs, uploads, name, records):
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == 0
    assert uploads == [[str(outputs / f"wandb/offline-run-{record}") for record in records]]


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [("nothing", True, "there is no such folder"), ("d", True, "recorded offline"), ("a", False, "`wandb login`")],
)
def test_what_cannot_be_uploaded(outputs, uploads, monkeypatch, capsys, make_run, name, key, message):
    make_run("x=d").rename(outputs / "runs/d")
    monkeypatch.setattr(sync, "has_key", lambda: key)
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert uploads == []
