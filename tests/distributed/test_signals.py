"""A signal is answered: between the steps if the loop looks, by an exception if it does not, else by the end."""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from runner.distributed import signals
from runner.distributed.signals import GracefulStop, raise_on_signal, stop_requested


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.2)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_the_first_signal_is_a_wish():
    assert not stop_requested()
    with GracefulStop() as stop:
        send()
        assert stop.requested
        assert stop_requested()
        send()
        send(signal.SIGINT)  # one that comes with the first is no second wish
    assert not stop_requested()
    with stop:
        assert not stop.requested


def test_a_second_ctrl_c_interrupts_at_once(monkeypatch):
    monkeypatch.setattr(signals, "DEBOUNCE_SECONDS", 0.0)
    with GracefulStop():
        send()
        time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_who_does_not_look_in_time_is_interrupted():
    before = threading.active_count()
    with GracefulStop():
        send()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
    with GracefulStop() as stop:
        send()
        stop.extend_deadline(math.inf)  # it writes a checkpoint
        time.sleep(0.5)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_step_has_the_time_that_steps_take():
    with GracefulStop() as stop:
        stop.begin_step()
        time.sleep(0.4)
        stop.end_step()
        stop.begin_step()
        send()
        time.sleep(0.5)
        stop.end_step()
        assert stop.requested


STUCK = """
import ctypes, os, signal, sys
from runner.distributed import signals
signals.GRACE_SECONDS = signals.UNWINDING_SECONDS = 0.2
with signals.GracefulStop(single_process=sys.argv[1] == "alone") as stop:
    stop.extend_deadline()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)  # so that they do not end the call below
    os.kill(os.getpid(), signal.SIGTERM)
    ctypes.CDLL(None).sleep(2)
"""


@pytest.mark.parametrize(("alone", "code"), [("alone", 130), ("one of several", 0)])
def test_a_call_that_nothing_interrupts(alone, code):
    """`GracefulStop` of a process that works alone ends it; another's is ended by the process that started it."""
    done = subprocess.run([sys.executable, "-c", STUCK, alone], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("what it was at did not end" in done.stderr) == (code == 130)


def test_the_error_of_a_rank_whose_partner_was_interrupted_first():
    def fails(*, alone):
        with GracefulStop(single_process=alone):
            send()
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(KeyboardInterrupt):
        fails(alone=False)
    with pytest.raises(RuntimeError):
        fails(alone=True)


def test_sigterm_raises_as_ctrl_c_does():
    with raise_on_signal():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        send(signal.SIGINT)  # of a terminal, together with it
