"""The launcher's watch over ranks, here small processes: signals are passed on, a rank that hangs is killed."""

import multiprocessing
import os
import signal
import time

import pytest

from runner.distributed import watch as watch_module
from runner.distributed.watch import RankWatch, rendezvous_folder, start_heartbeat
from runner.results.run_lock import hold


def work(folder, rank, stops):
    """A rank that beats and answers to no SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_heartbeat(folder, rank)
    time.sleep(0.3)
    if stops:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """`ranks(stopped=1)`: two ranks, of which the second is stopped after a moment."""
    monkeypatch.setattr(watch_module, "HEARTBEAT_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")
    started = []

    def call(*, stopped=None):
        started.extend(context.Process(target=work, args=(tmp_path, rank, rank == stopped)) for rank in (0, 1))
        for process in started:
            process.start()
        while len(list(tmp_path.glob("beat-*"))) < 2:
            time.sleep(0.01)
        return started

    yield call
    for process in started:
        process.kill()
        process.join()


def end(ranks):
    for process in ranks:
        process.join(timeout=30)
    return [process.exitcode for process in ranks]


def test_a_rank_that_does_not_answer_ends_all(ranks, tmp_path):
    with RankWatch(tmp_path, timeout=1.5) as watch:
        assert end(ranks(stopped=1)) == [-signal.SIGKILL] * 2
    assert watch.hung == "rank 1 did not answer for 1.5 seconds"
    assert watch.signalled_at is None


def test_ranks_that_answer_are_left_alone(ranks, tmp_path):
    with RankWatch(tmp_path, timeout=0.7) as watch:
        started = ranks()
        time.sleep(1.0)
        assert all(process.is_alive() for process in started)
    assert watch.hung is None


def test_a_second_ctrl_c_kills_also_a_stopped_rank(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "DEBOUNCE_SECONDS", 0.0)
    with RankWatch(tmp_path, timeout=60.0) as watch:
        started = ranks(stopped=1)
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.signalled_at is not None
        time.sleep(0.2)
        assert all(process.is_alive() for process in started)
        os.kill(os.getpid(), signal.SIGINT)
        assert end(started) == [-signal.SIGKILL] * 2


def test_ranks_that_do_not_end_after_a_signal_are_killed(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "KILL_AFTER_SECONDS", 0.3)
    with RankWatch(tmp_path, timeout=60.0):
        started = ranks(stopped=1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert end(started) == [-signal.SIGKILL] * 2


def test_folders_of_launchers_that_were_killed_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, young, other = (tmp_path / name for name in ("runner-dead", "runner-young", "else"))
    for folder in (dead, young, other):
        folder.mkdir()
        (folder / ".lock").touch()
    for folder in (dead, other):
        os.utime(folder, (0, 0))
    with rendezvous_folder() as own:
        os.utime(own, (0, 0))
        with rendezvous_folder() as second:
            assert {path.name for path in tmp_path.iterdir()} == {"runner-young", "else", own.name, second.name}
    with hold(young):
        os.utime(young, (0, 0))
        with rendezvous_folder():
            assert young.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"runner-young", "else"}
