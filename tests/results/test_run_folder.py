"""Run folders: names, atomic files, the overrides a resumed run starts from."""

import json
import math

import pytest
import yaml

from runner.config.text import SettingError
from runner.results.run_folder import RunFolder, earlier_overrides


def test_a_taken_name_gets_a_number(tmp_path):
    names = [RunFolder.create(tmp_path, "run").path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_a_summary_is_strict_json(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_summary({"loss": math.nan, "list": [math.inf, 1.0], "nested": {"x": -math.inf}})
    assert json.loads(folder.summary.read_text()) == {"loss": None, "list": [None, 1.0], "nested": {"x": None}}
    assert folder.read_summary() == json.loads(folder.summary.read_text())


def test_a_resumed_run_starts_from_its_folders_overrides(tmp_path):
    folder = RunFolder(tmp_path)
    folder.overrides.write_text(yaml.safe_dump(["norm=agc", "agc.clip=0.1", "train.epochs=3"]))
    resume = f"resume={tmp_path}"
    quoted = f"resume='{tmp_path}'"  # a job's folder has commas in its name, which make a sweep elsewhere
    assert earlier_overrides([resume]) == ["norm=agc", "agc.clip=0.1", "train.epochs=3", quoted]
    assert earlier_overrides([resume, "train.epochs=9"]) == ["norm=agc", "agc.clip=0.1", quoted, "train.epochs=9"]
    assert earlier_overrides([resume, "norm=batchnorm", "agc=x"]) == [
        "train.epochs=3",
        quoted,
        "norm=batchnorm",
        "agc=x",
    ]
    assert earlier_overrides(["norm=agc"]) == ["norm=agc"]
    folder.overrides.write_text(yaml.safe_dump(["norm=[agc]", "agc.clip=0.1", "regularization=mixup", "mixup.alpha=1"]))
    assert earlier_overrides([resume, "regularization=[]"]) == [
        "norm=[agc]",
        "agc.clip=0.1",
        quoted,
        "regularization=[]",
    ]
    added = [resume, "regularization=[mixup,cutmix]"]
    assert "mixup.alpha=1" in earlier_overrides(added)
    with pytest.raises(SettingError, match="one run goes on, not a sweep"):
        earlier_overrides([resume, "-m"])


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(SettingError, match=r"resume=.*nowhere: no run lies there"):
        earlier_overrides([f"resume={tmp_path / 'nowhere'}"])


def test_a_trace_keeps_its_lines_and_commands_no_terminal(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_failure("it fell", "Traceback\n\tline 1\n\x1b[31mred\r", {})
    assert folder.error.read_text() == "Traceback\n\tline 1\n\\x1b[31mred\\r\n"
