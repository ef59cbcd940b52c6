"""Atomic files and strict JSON."""

import math
import os
from pathlib import Path

import pytest

from runner.files.atomic import CannotWrite, finite, make_folder, new_folder, write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_atomic_write_is_complete_before_it_takes_the_name(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    path.write_text("old")
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda _: events.append("fsync"))

    def watched(source: os.PathLike, target: os.PathLike) -> None:
        events.append((path.read_text(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_atomically(path, "new")
    assert events == ["fsync", ("old", "new"), "fsync"]  # the content, the name, the folder
    assert path.read_text() == "new"


def test_the_bytes_of_a_path_in_a_locale_without_utf8_are_written_as_they_are(tmp_path):
    path = "données/日本"
    read_as_ascii = path.encode().decode("ascii", "surrogateescape")  # as sys.argv and os.listdir have it there
    write_atomically(tmp_path / "results.csv", read_as_ascii)
    assert (tmp_path / "results.csv").read_text(encoding="utf-8") == path


def test_numbers_that_are_not_finite_become_none():
    assert finite({"a": [math.nan, 1.0], "b": (math.inf, {"c": -math.inf})}) == {
        "a": [None, 1.0],
        "b": [None, {"c": None}],
    }
    assert finite(3) == 3


def test_where_no_folder_can_be_made_its_parents_do_not_stay(tmp_path, monkeypatch):
    made, mkdir = [], os.mkdir

    def refused(path, *arguments):
        if Path(path).name == "run":
            raise PermissionError(13, "Permission denied", str(path)) if made else FileNotFoundError(2, "", str(path))
        mkdir(path, *arguments)
        made.append(path)

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(PermissionError):
        new_folder(tmp_path / "outputs" / "runs", "run")
    assert len(made) == 2
    assert list(tmp_path.iterdir()) == []


def test_where_a_new_folder_cannot_be_taken_it_does_not_stay(tmp_path):
    (tmp_path / "runs/run").mkdir(parents=True)

    def refuse(folder):
        assert folder == tmp_path / "runs/a/run"
        assert folder.is_dir()
        raise PermissionError

    with pytest.raises(PermissionError):
        new_folder(tmp_path / "runs/a", "run", refuse)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    assert [new_folder(tmp_path / "runs", "run").name for _ in range(3)] == ["run", "run-2", "run-3"]


def test_a_folder_that_cannot_be_made_is_told_by_its_name(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file/b cannot be written"):
        make_folder(tmp_path / "file" / "b")
