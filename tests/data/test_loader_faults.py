"""Loader processes that hang, die or find no room: an end with a word for it, and nobody is left behind."""

import errno
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from runner.data.dataset import DataFault
from runner.data.file_loader import make_loader
from runner.data.loader_faults import batches_of, loader_fault
from runner.distributed.signals import GracefulStop, StopRequested
from runner.experiment import outcome
from runner.files.atomic import CannotWrite

FULL = "unable to write to file </torch_1_2_3>: No space left on device (28)"


def load(sample):
    """What a loader process does: `sample` is a word for it, in a tuple."""
    [deed] = sample
    if deed == "sleep":
        time.sleep(60)
    if deed == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "bus error":
        os.kill(os.getpid(), signal.SIGBUS)
    return torch.zeros(3, 2, 2, dtype=torch.uint8), 1


def batches(*deeds, seconds=60.0, num_workers=1):
    plan = [[((deed,), 0)] for deed in deeds]
    loader = make_loader(load, plan, fill=(0, 0, 0), num_workers=num_workers, persistent=False, pin_memory=False)
    return batches_of(loader, seconds)


def left_behind():
    end = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    return multiprocessing.active_children()


@pytest.mark.parametrize("deed", ["sleep", "stop"])
def test_a_loader_that_gives_nothing(deed):
    with pytest.raises(DataFault, match=r"dataset\.timeout_seconds=0\.5: the loader processes gave no batch"):
        next(batches(deed, seconds=0.5))
    assert not left_behind()


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("die", "a loader process died .*; there may be too little memory"),
        ("bus error", "shared memory is full: raise"),
    ],
)
def test_a_loader_process_that_dies(deed, message):
    with pytest.raises(DataFault, match=message):
        list(batches("load", deed))
    assert not left_behind()


@pytest.mark.parametrize(
    ("text", "message"),
    [(FULL, "shared memory is full: raise --shm-size or set dataset.num_workers=0"), ("Too many open files", "ulimit")],
)
def test_no_room_for_a_batch(monkeypatch, text, message):
    """The loader process, a child of this one, finds none for its tensors."""

    def share(_):
        raise RuntimeError(text)

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    [batch] = batches("load")
    assert isinstance(batch.fault, DataFault)
    assert message in str(batch.fault)
    [batch] = batches("load", num_workers=0)  # which shares nothing
    assert batch.fault is None


def test_the_error_of_a_bug_stays_itself(monkeypatch):
    assert loader_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None

    def share(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    with pytest.raises(RuntimeError, match="a bug"):
        list(batches("load"))


def test_a_signal_while_it_waits():
    began = time.monotonic()
    with GracefulStop():
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StopRequested):
            list(batches("sleep"))
    assert time.monotonic() - began < 30
    assert not left_behind()


def test_a_full_disk_is_not_taken_for_full_shared_memory():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    text = "last.pt cannot be written (No space left on device)."
    assert outcome.user_message(CannotWrite.from_os_error("last.pt", error)) == text
    assert outcome.user_message(error) is None
    assert "shared memory is full" in outcome.user_message(RuntimeError(FULL))


def test_the_death_of_another_rank_is_told_in_a_line(monkeypatch):
    error = RuntimeError("[pair.cc:545] Read error [127.0.0.1]:18562: Connection reset by peer.")
    assert outcome.user_message(error) is None  # a process alone has no peer
    monkeypatch.setattr(outcome, "is_distributed", lambda: True)
    assert outcome.user_message(error) == "Another rank has died, or cannot be reached any more."
