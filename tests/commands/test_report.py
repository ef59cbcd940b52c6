"""`runner report`, in a process where torch cannot be imported."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def sweep(tmp_path):
    for accuracy in (0.8, 0.9):
        folder = tmp_path / f"sweeps/norms/norm=a{accuracy}"
        folder.mkdir(parents=True)
        summary = {"status": "completed", "best": {"accuracy": accuracy}, "overrides": [f"norm=a{accuracy}"]}
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "sweeps/norms"


def run(*arguments, cwd):
    code = "import sys; sys.modules['torch'] = None; from runner.__main__ import main; main()"
    # old versions of matplotlib call names that pyparsing has renamed
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        code,
        "report",
        *map(str, arguments),
    ]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_sweep_has_its_report_in_its_folder_without_torch(sweep, tmp_path):
    found = run("sweeps/norms", cwd=tmp_path)
    assert (found.returncode, found.stderr, found.stdout) == (0, "", "sweeps/norms/report.html\n")
    assert {"report.html", "report.md", "results.csv", "figures"} <= {path.name for path in sweep.iterdir()}


def test_several_folders_have_it_in_a_folder_of_their_names_or_where_one_says(sweep, tmp_path):
    folders = sorted(sweep.iterdir())
    found = run(*folders, cwd=tmp_path)
    assert found.stdout == "outputs/reports/norm=a0.8+norm=a0.9/report.html\n"
    assert (tmp_path / found.stdout.strip()).is_file()
    assert run(folders[0], "--into", "here", cwd=tmp_path).stdout == "here/report.html\n"
    assert (tmp_path / "here/report.html").is_file()


def test_wrong_folders_end_with_a_short_message(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        found = run(name, cwd=tmp_path)
        assert found.returncode == 2
        assert found.stderr.startswith(f"No report. {name}: there is no ")
        assert found.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
