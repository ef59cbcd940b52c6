"""A job in a process beside that of a launcher.

A job that dies, for want of memory say, then takes neither the launcher's process nor another job with it, and its
death is recorded as a failure. What it prints is in its folder. It gets what it needs on its standard input, which
stays open as long as the process above lives: its end is that of the job, which writes a checkpoint first. A process
whose job has a result takes the next one: to import torch and to find a GPU take seconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from runner.config.settings import Settings
from runner.distributed.signals import handle_stop_signals, raise_on_signal
from runner.files.atomic import CannotWrite, make_folder
from runner.results.job import OUTPUT, Job
from runner.results.run_lock import Taken, hold
from runner.results.run_state import FAILED, INTERRUPTED, RESULTS, RUNNING, read_state
from runner.sweeps.devices import take_devices
from runner.sweeps.job_run import cannot_begin, record_failure, run_job
from runner.sweeps.jobs_at_once import JobsAtOnce

DONE = b"\n"  # what its process answers
LOOK_EVERY_SECONDS = 0.2
KILL_AFTER_SECONDS = 60.0  # for a job that was asked to end and hangs; more than its own ranks are given


_waiting: tuple[subprocess.Popen, Mapping[str, str]] | None = None  # the last process, and its environment


def run_job_apart(
    settings: Settings, job: Job, *, retry_failed: bool, stop: Path, at_once: JobsAtOnce | None = None
) -> str:
    """As `run_job`, in a process of its own. Once the file `stop` exists the job ends, and no other begins.

    After a SIGINT or SIGTERM to this process a file beside it says the same to this process alone. The status is
    "interrupted" then. `at_once` says what share of the machine the job has.
    """
    own_stop = stop.with_name(f"{stop.name}-{socket.gethostname()}-{os.getpid()}")

    def should_stop() -> bool:
        return stop.exists() or own_stop.exists()

    state = read_state(job.path)
    if state.status == RUNNING or state.is_left_alone(retry_failed=retry_failed):
        return state.status
    content = {
        "settings": settings.plain(),
        "job": {**vars(job), "folder": str(job.folder)},
        "retry_failed": retry_failed,
    }
    with ExitStack() as stack:
        stack.enter_context(handle_stop_signals(lambda *_: own_stop.touch()))
        devices: tuple[str, ...] = ()
        if at_once and at_once.devices and settings.train.device != "cpu":
            places = (at_once.devices, at_once.per_device, stop.with_name(f"{stop.name}-devices"))
            devices = stack.enter_context(take_devices(settings.train.num_devices, *places, should_stop))
        if should_stop():
            return INTERRUPTED
        try:
            make_folder(job.path)
        except CannotWrite as error:
            return cannot_begin(job, error)
        output = stack.enter_context(job.open_output())
        process = _process(at_once.environment(devices) if at_once else {}, output)
        code = _run(process, json.dumps(content), should_stop)
    state = read_state(job.path)
    if not code or state.status in RESULTS:
        return state.status
    if should_stop():
        return INTERRUPTED
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    reason = f"Its process died ({how}). What it printed is in {OUTPUT}."
    with suppress(Taken), hold(job.path):
        record_failure(job, reason, reason, show=False)
    return FAILED


def _process(environment: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen:
    """The process that waits for a job, or a new one if there is none with this environment.

    A new one writes into `output` until it has its job.
    """
    global _waiting
    if _waiting is not None:
        process, of_process = _waiting
        if of_process == environment and process.poll() is None:
            return process
        _end(process)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        env={**os.environ, **environment},
        start_new_session=True,  # a terminal's Ctrl-C comes from here alone
    )
    _waiting = process, environment
    return process


def _run(process: subprocess.Popen, content: str, should_stop: Callable[[], bool]) -> int | None:
    """The exit code of the process, which gets `content`, and is asked to end once `should_stop` says so.

    None if it waits for another job.
    """
    with suppress(BrokenPipeError):  # it died; its exit code tells
        process.stdin.write(f"{content}\n".encode())
        process.stdin.flush()
    asked: float | None = None
    while process.poll() is None:
        if asked is None and should_stop():
            process.terminate()
            asked = time.monotonic()
        if asked is not None and time.monotonic() - asked > KILL_AFTER_SECONDS:
            process.kill()
        if select.select([process.stdout], [], [], LOOK_EVERY_SECONDS)[0]:
            if os.read(process.stdout.fileno(), len(DONE)):
                return None
            time.sleep(LOOK_EVERY_SECONDS)  # it has closed its output, and is about to end
    _end(process)
    return process.returncode


def _end(process: subprocess.Popen) -> None:
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    process.wait()


@cache
def end_with(parent: int) -> None:
    """End this process of a launcher, and its job, once `parent`, the process that started it, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_SECONDS)
        while True:  # while a job is at work the signal asks it to end; after it, it ends this process
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LOOK_EVERY_SECONDS)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the jobs that the standard input tells of, one after the other, up to the first without a result."""
    answers, lines, busy = os.dup(sys.stdout.fileno()), SimpleQueue(), threading.Event()
    threading.Thread(target=_read_input, args=[lines, busy], daemon=True).start()
    while line := lines.get():
        content = json.loads(line)
        job = content["job"]
        job = Job(**{**job, "folder": Path(job["folder"]), "overrides": tuple(job["overrides"])})
        with job.open_output() as output:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(output.fileno(), stream.fileno())
        with raise_on_signal():
            status = run_job(Settings(content["settings"]), job, retry_failed=content["retry_failed"])
        if status not in RESULTS:  # memory may be lost
            return
        sys.stdout.flush()
        busy.clear()
        with suppress(BrokenPipeError):
            os.write(answers, DONE)


def _read_input(lines: SimpleQueue[str], busy: threading.Event) -> None:
    """Put each line of the standard input into `lines`; its end ends this process, and the job it is `busy` with."""
    for line in sys.stdin:
        busy.set()
        lines.put(line)
    lines.put("")
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
