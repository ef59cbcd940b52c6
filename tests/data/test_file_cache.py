"""What was found out of files is asked for once, unless a file has changed or the cache is damaged."""

import os

import pytest

from runner.data import file_cache
from runner.data.file_cache import FileCache


@pytest.fixture
def files(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("x" * i)
    return [str(tmp_path / f"{i}.txt") for i in range(5)]


@pytest.fixture
def ask(files, monkeypatch):
    """`ask()` gives the sizes of the files, and which of them were looked into, each time as a new process would."""
    monkeypatch.setattr(file_cache, "MIN_NEW_RESULTS", 1)

    def call(paths=files):
        asked = []

        def find_out(path):
            asked.append(path)
            with open(path) as file:
                return len(file.read())

        return FileCache("sizes", os.path.dirname(files[0])).get(paths, find_out), sorted(asked)

    return call


def test_a_file_is_looked_into_once(ask, files):
    assert ask() == ([0, 1, 2, 3, 4], files)
    assert ask() == ([0, 1, 2, 3, 4], [])
    assert ask(files[3:]) == ([3, 4], [])


def test_a_file_that_changed_is_looked_into_again(ask, files):
    ask()
    before = os.stat(files[1])
    with open(files[1], "w") as file:
        file.write("y")  # as long as before
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))  # and as old, as some programs copy
    with open(files[4], "a") as file:
        file.write("more")
    assert ask() == ([0, 1, 2, 3, 8], [files[1], files[4]])
    assert ask()[1] == []


def test_a_file_that_cannot_be_read_is_asked_for_again(ask, files):
    os.remove(files[2])
    facts, asked = ask()
    assert isinstance(facts.pop(2), FileNotFoundError)
    assert (facts, asked) == ([0, 1, 3, 4], files)
    assert ask()[1] == [files[2]]


@pytest.mark.parametrize("damage", [b"", b"junk", b"{}", b"\xff\xfe", None])
def test_a_damaged_cache_is_done_without(ask, files, cache_folder, damage):
    ask()
    [file] = cache_folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b", 4]", b", 5]") if damage is None else damage)
    assert ask() == ([0, 1, 2, 3, 4], files)
    assert ask()[1] == []
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(ask, files, cache_folder, monkeypatch):
    (cache_folder / "file").write_text("")
    monkeypatch.setattr(file_cache, "cache_folder", lambda: cache_folder / "file" / "below")
    assert ask() == ([0, 1, 2, 3, 4], files)
    assert ask() == ([0, 1, 2, 3, 4], files)


def test_the_cache_is_where_the_user_keeps_such(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FileCache("sizes", "x").file.parent == tmp_path / "runner"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert FileCache("sizes", "x").file.parent == tmp_path / "home" / ".cache" / "runner"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody knows of a home
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(file_cache, "MIN_NEW_RESULTS", 1)
    assert FileCache("sizes", "x").get([__file__], lambda path: 7) == [7]
    assert list(tmp_path.iterdir()) == []


def test_few_files_leave_no_cache(files, cache_folder):
    FileCache("sizes", "x").get(files, len)
    assert list(cache_folder.iterdir()) == []
