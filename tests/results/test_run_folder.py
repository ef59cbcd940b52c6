"""Run folders: names and atomic files."""

import json
import math

from runner.results.run_folder import RunFolder


def test_a_taken_name_gets_a_number(tmp_path):
    names = [RunFolder.create(tmp_path, "run").path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_a_summary_is_strict_json(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_summary({"loss": math.nan, "list": [math.inf, 1.0], "nested": {"x": -math.inf}})
    assert json.loads(folder.summary.read_text()) == {"loss": None, "list": [None, 1.0], "nested": {"x": None}}
    assert folder.read_summary() == json.loads(folder.summary.read_text())


def test_a_trace_keeps_its_lines_and_commands_no_terminal(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_failure("it fell", "Traceback\n\tline 1\n\x1b[31mred\r", {})
    assert folder.error.read_text() == "Traceback\n\tline 1\n\\x1b[31mred\\r\n"
