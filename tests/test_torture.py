"""The torture: that it finds what it is to find, that an attack can be run again, that what is whole survives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
SEED = 1


@pytest.fixture(scope="module")
def tortures():
    """The modules beside torture.py, which Python finds when it runs that file."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        from tortures import attack, campaign, file_calls, processes, survival, wounds
    finally:
        sys.path.remove(str(SCRIPTS))
    return {
        module.__name__.partition(".")[2]: module
        for module in (attack, campaign, file_calls, processes, survival, wounds)
    }


def ended(tortures, *, code=0, out="", err="", left=()):
    return tortures["processes"].Ended("python -m runner", code, out, err, 1.0, left)


def test_what_is_right_survives(tortures):
    faults = tortures["survival"].faults
    assert faults(ended(tortures, out="status: completed\n"), {0: "done"}) == []
    assert faults(ended(tortures, code=2, err="Wrong setting. train.epochs=x\n"), {2: "refused"}, is_quiet=True) == []


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"code": None}, "no end within the deadline"),
        ({"code": 3, "out": "x"}, "exit code 3, not 0 (done) or 2 (refused): x"),
        ({"code": -9}, "exit code -9"),
        ({"code": 2}, "exit code 2 without a word"),
        ({"code": 0, "err": "Traceback (most recent call last):\nKeyError: 'epoch'\n"}, "traceback: KeyError: 'epoch'"),
        ({"code": 2, "err": "Error executing job with overrides: []\nWrong setting."}, "beside the message"),
        ({"code": 2, "err": "x" * 5000}, "a message of 5,000 characters"),
        ({"code": 0, "out": "\x1b[31mred"}, "the control character '\\x1b'"),
        ({"code": 0, "left": ("python rank",)}, "left behind: python rank"),
        ({"code": 0, "out": "hunter2-in-the-environment"}, "the value of a secret"),
    ],
)
def test_what_is_wrong_with_an_end_is_told(tortures, how, reason):
    found = tortures["survival"].faults(ended(tortures, **how), {0: "done", 2: "refused"}, is_quiet=True)
    assert any(reason in fault for fault in found), found


def test_changes_of_files_are_seen(tortures, tmp_path):
    tree, changes = tortures["survival"].tree, tortures["survival"].changes
    for name in ("kept", "changed", "gone", ".lock"):
        (tmp_path / name).write_text("before")
    before = tree(tmp_path)
    assert changes(before, tree(tmp_path)) == []
    (tmp_path / "changed").write_text("after")
    (tmp_path / ".lock").write_text("another process")
    (tmp_path / "gone").unlink()
    (tmp_path / "new").mkdir()
    assert changes(before, tree(tmp_path)) == ["changed changed", "gone is gone", "new is new"]
    (tmp_path / "kept").unlink()
    (tmp_path / "kept").symlink_to("changed")
    assert "kept changed" in changes(before, tree(tmp_path), ["kept"])


@pytest.mark.parametrize("kind", ["damage"])
def test_a_wound_is_drawn_from_the_seed_alone(tortures, tmp_path, kind):
    texts = []
    for place in ("a", "b"):
        random = tortures["attack"].Random(f"{SEED}/{kind}/3")
        found = []
        for number in range(60):
            folder = tmp_path / place / str(number) / "outputs/runs/run"
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text('{"status": "completed", "metrics": {}}')
            wound = tortures["wounds"].wound(random, folder / "summary.json", folder / "none")
            found.append(wound.text)
        texts.append(found)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 20


WATCHED = """
import errno, os, sys
from pathlib import Path
from tortures.file_calls import Refuse, Stop, watched
folder, log, act = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])

def write():
    try:
        with open(folder / "new", "w") as file:
            file.write("x" * 10)
            file.flush()
            os.fsync(file.fileno())
        os.replace(folder / "new", folder / "file")
    finally:
        (folder / "new").unlink(missing_ok=True)

watched(write, folder, log, act)()
"""


def test_every_call_that_changes_a_file_is_seen_and_can_be_the_last(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "calls"
    folder.mkdir()
    run = [sys.executable, "-c", WATCHED, folder, log]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{SCRIPTS.parent}:{SCRIPTS}"}
    assert subprocess.run([*run, "None"], env=environment).returncode == 0
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    assert calls == ["open", "write", "fsync", "os.rename", "os.remove"]
    (folder / "file").write_text("before")
    assert subprocess.run([*run, "Stop(2)"], env=environment).returncode == -9
    assert (folder / "new").read_text() == "x" * 5
    assert (folder / "file").read_text() == "before"
    done = subprocess.run([*run, "Refuse(2, errno.ENOSPC)"], env=environment, capture_output=True, text=True)
    assert "No space left on device" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["file"]


BROKEN = """
import os, runpy, sys
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, sys.argv[1])
{fault}
sys.argv[:] = ["torture.py", *sys.argv[2:]]
runpy.run_path(os.path.join(sys.path[0], "torture.py"), run_name="__main__")
"""
IN_PLACE = """
import runner.files.atomic, runner.training.checkpoint
def write_in_place(path, content, *, previous=None):
    with open(path, "w+b") as file:
        content(file) if callable(content) else file.write(content.encode())
runner.training.checkpoint.write_atomically = write_in_place
"""
A_READER_FAILS = """
import json
from runner.tracking.metrics_log import MetricsLog
def cut_back(self, step):
    rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
    rows[-1]["nothing of that name"]
MetricsLog.cut_back = cut_back
"""
ANOTHER_SEED = """
import runner.training.state
runner.training.state.restore_random_state = lambda *_: None
"""
FAULTS = {
    "in place": (IN_PLACE, "kill", "no checkpoint can be loaded"),
    "a reader": (A_READER_FAILS, "damage", "traceback: "),
    "another seed": (ANOTHER_SEED, "kill", "differs from one that was left alone"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_is_planted_is_found(tmp_path, name):
    fault, kind, reason = FAULTS[name]
    arguments = [kind, "--seed", str(SEED), "--minutes", "3", "--first", "--json", tmp_path / "torture.json"]
    code = BROKEN.format(fault=fault)
    done = subprocess.run(
        [sys.executable, "-c", code, SCRIPTS, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    failures = json.loads((tmp_path / "torture.json").read_text())["kinds"][kind]["failures"]
    assert any(reason in text for failure in failures for text in failure["reasons"]), done.stdout
    assert f"python scripts/torture.py {kind} --seed {SEED} --only {failures[0]['number']}" in done.stdout


@pytest.mark.slow
def test_what_is_whole_survives_two_minutes(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            SCRIPTS / "torture.py",
            "--seed",
            str(SEED),
            "--minutes",
            "2",
            "--json",
            tmp_path / "torture.json",
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads((tmp_path / "torture.json").read_text())["kinds"]
    assert all(tally["tried"] > 0 for tally in kinds.values()), kinds
