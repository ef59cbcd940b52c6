from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.results.metrics import read_rows
from runner.tracking.metrics_log import MetricsLog


def row(step: int, **metrics: object) -> dict:
    return {"step": step, "epoch": 1, "split": "train", **metrics}


@pytest.fixture
def log(tmp_path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_rows_come_back_in_order_one_json_object_a_line(log):
    rows = [row(1, loss=2.5), {"step": 2, "epoch": 0.5, "split": "steps", "lr": 0.1}, row(3, loss=1.0)]
    for entry in rows:
        log.write(entry)
        assert json.loads(log.path.read_text().splitlines()[-1]) == entry  # on disk at once, not at the end
    assert read_rows(log.path) == rows


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_full_precision(tmp_path_factory, value):
    log = MetricsLog(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    log.write(row(1, loss=value))
    assert read_rows(log.path)[0]["loss"] == value


def test_non_finite_numbers_are_null_for_strict_readers(log):
    log.write(row(1, loss=math.nan, norm=math.inf, layers=[1.0, -math.inf], nested={"a": math.nan}))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    parsed = json.loads(log.path.read_text(), parse_constant=refuse)
    assert parsed == row(1, loss=None, norm=None, layers=[1.0, None], nested={"a": None})


@pytest.mark.parametrize("wrong", [{"step": 1, "epoch": 1}, {"step": 1, "epoch": 1, "split": "val"}])
def test_a_row_without_its_keys_is_a_bug(log, wrong):
    with pytest.raises(AssertionError):
        log.write(wrong)


@pytest.mark.parametrize("torn", [b'{"step": 4, "epo', b'{"step": 4, "epoch": 1, "split": "train", "name": "\xc3'])
def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next_row(log, torn):
    log.write(row(3))
    with open(log.path, "ab") as file:
        file.write(torn)
    assert read_rows(log.path) == [row(3)]
    again = MetricsLog(log.path)
    again.write(row(5))
    assert read_rows(log.path) == [row(3), row(5)]


def test_a_broken_line_within_the_file_is_an_error_that_names_it(log):
    log.path.write_text(f"{json.dumps(row(1))}\nnonsense\n{json.dumps(row(3))}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_rows(log.path)


def test_cut_back_keeps_the_rows_up_to_the_step_and_the_log_goes_on(log):
    for step in (10, 20, 20, 30):
        log.write(row(step, loss=0.1 + 0.2))
    with open(log.path, "a") as file:
        file.write('{"step": 20, "ep')
    log.cut_back(20)
    assert [entry["step"] for entry in read_rows(log.path)] == [10, 20, 20]
    assert log.path.read_bytes().endswith(b"}\n")
    log.write(row(21))
    assert [entry["step"] for entry in read_rows(log.path)] == [10, 20, 20, 21]
    assert read_rows(log.path)[0]["loss"] == 0.1 + 0.2


def test_cut_back_without_a_file_does_nothing(log):
    log.cut_back(5)
    assert not log.path.exists()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_cut_that_fails_halfway_leaves_the_old_file_and_nothing_else(log, monkeypatch, failing):
    log.write(row(1))
    log.write(row(2))
    before = log.path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        log.cut_back(1)
    assert log.path.read_bytes() == before
    assert os.listdir(log.path.parent) == ["metrics.jsonl"]
