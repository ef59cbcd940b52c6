"""One process at a time: within a process as often as need be, gone with the process, not a forked child's."""

import os
import subprocess
import sys
import threading
import time

import pytest

from runner.results.run_lock import Taken, hold, is_held, sign

HOLDER = "import sys, pathlib; from runner.results.run_lock import hold; lock = hold(pathlib.Path(sys.argv[1])); "
HOLDER += "lock.__enter__(); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder, until its standard input is closed or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def ask(folder):
    """What another process finds."""
    code = "import sys, pathlib; from runner.results.run_lock import is_held; print(is_held(pathlib.Path(sys.argv[1])))"
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True).stdout.strip()


def test_a_folder_that_is_taken(tmp_path, other):
    assert is_held(tmp_path)
    with (
        pytest.raises(Taken, match=rf"{tmp_path}: another process works on it \(process {other.pid} on "),
        hold(tmp_path),
    ):
        pass
    assert is_held(tmp_path)  # asking did not free it


def test_a_dead_process_frees_it(tmp_path, other):
    other.kill()
    other.wait()
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)


def test_again_within_a_process(tmp_path):
    with hold(tmp_path):
        with hold(tmp_path / "."):  # the same by another name
            assert ask(tmp_path) == "True"
        assert is_held(tmp_path)  # opens no descriptor, whose closing would free it
        assert ask(tmp_path) == "True"
    assert ask(tmp_path) == "False"
    assert not is_held(tmp_path)


def test_an_error_frees_it(tmp_path):
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError
    assert ask(tmp_path) == "False"


def test_a_forked_child_does_not_hold_it(tmp_path):
    with hold(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with hold(tmp_path):
                    code = 1
            except Taken:
                code = 0 if is_held(tmp_path) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(tmp_path) == "True"  # nor did its end free it


def test_asking_writes_nothing(tmp_path):
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_many_processes_and_one_of_them_at_a_time(tmp_path):
    """Each adds 1 to a number as often as it gets the folder; without a lock some of the sums would be lost."""
    (tmp_path / "number").write_text("0")
    code = """if True:
        import pathlib, sys
        from runner.results.run_lock import Taken, hold, is_held
        folder, done = pathlib.Path(sys.argv[1]), 0
        while done < 50:
            is_held(folder)
            try:
                with hold(folder):
                    (folder / "number").write_text(str(int((folder / "number").read_text()) + 1))
                    done += 1
            except Taken:
                pass
    """
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "150"


def test_it_can_be_waited_for(tmp_path, other):
    threading.Timer(0.5, other.kill).start()
    began = time.monotonic()
    with hold(tmp_path, wait_seconds=30):
        assert time.monotonic() - began >= 0.4


def test_who_holds_it_is_written_by_the_holder_alone(tmp_path):
    """A rank of a sweep's job works in a folder that the process of the sweep holds."""
    with hold(tmp_path, signed=False):
        sign(tmp_path)
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    before = (tmp_path / ".lock").read_text()
    sign(tmp_path)
    assert (tmp_path / ".lock").read_text() == before
