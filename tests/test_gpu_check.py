"""scripts/gpu_check.sh, as far as a CPU can run it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(folder, *wheels, only):
    environment = {**os.environ, "DEVICE": "cpu", "TINY": "1", "PYTHON": sys.executable, "ONLY": only}
    command = ["bash", "scripts/gpu_check.sh", folder, *wheels]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_parts_leave_a_summary_their_logs_and_the_small_files_of_their_runs(tmp_path):
    done = run(tmp_path, only="machine|process_group|^agc")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "summary.txt").read_text()
    assert summary == done.stdout
    for line in ("ok   machine", "ok   process_group", "ok   agc", "agc: ", "torch "):
        assert line in summary
    with tarfile.open(tmp_path / "logs.tgz") as logs, tarfile.open(tmp_path / "runs.tgz") as runs:
        assert {"logs/machine.log", "logs/agc.log"} < set(logs.getnames())
        assert "./runs/agc/metrics.jsonl" in runs.getnames()
        assert not [name for name in runs.getnames() if name.endswith(".pt")]


def test_wheels_are_installed_for_the_check_alone_and_what_fails_is_told(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "triton-0.1-py3-none-any.whl", "w") as wheel:  # older than what is there
        wheel.writestr("triton/__init__.py", "raise ValueError('the wheel was imported')\n")
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: triton\nVersion: 0.1\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            wheel.writestr(f"triton-0.1.dist-info/{name}", text)
    done = run(tmp_path / "out", wheels, only="machine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "triton 0.1" in done.stdout
    (wheels / "broken-1.0-py3-none-any.whl").write_text("")
    done = run(tmp_path / "out", wheels, only="machine")
    assert done.returncode == 1
    assert "FAIL the wheels were not installed" in done.stdout
