"""What the process of the command line does while a launcher's other processes run the jobs of a sweep.

A thread looks at the jobs' folders and says what becomes of each: where the jobs run, in this machine or another, what
they print is in their folders. The first Ctrl-C (or SIGTERM) asks all of them to stop, through a file that they look
for, since they need not be children of this process; they write their checkpoints. The second ends the wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from runner.distributed.signals import handle_stop_signals
from runner.results.job import Job
from runner.results.run_state import FAILED, INTERRUPTED, RESULTS, RUNNING, TO_DO, RunState, read_state
from runner.sweeps.job_run import show_error, show_job

LOOK_EVERY_SECONDS = 1.0


class LauncherWatch:
    """Watches `jobs` from `start` to `finish`; `stop` is the file by which they are asked to stop."""

    def __init__(self, jobs: Sequence[Job], stop: Path) -> None:
        self.stop = stop
        self._jobs = {job.name: job for job in reversed(jobs)}
        self._seen: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep", daemon=True)
        self._taken = ExitStack()

    def start(self) -> None:
        """Begin to watch, and to take the signals."""
        self._look(first=True)
        self._taken.enter_context(handle_stop_signals(self._on_signal))
        self._thread.start()

    def finish(self) -> bool:
        """Say what is left to say, and give back the signals; whether one came."""
        self._over.set()
        self._thread.join()
        self._taken.close()
        self._look()
        return self.stop.exists()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_SECONDS):
            self._look()

    def _look(self, *, first: bool = False) -> None:
        """Say what has changed since the last look; before the first there is nothing to say of what is to be run."""
        for name, job in self._jobs.items():
            before = self._seen.get(name)
            if before in RESULTS:
                continue
            state = read_state(job.path)
            self._seen[name] = state.status
            if state.status == before or state.status == TO_DO:
                continue
            if first and state.status in (FAILED, INTERRUPTED):
                continue
            if state.status == INTERRUPTED and not state.summary:
                continue  # it died, of which the process above it tells
            self._show(job, state, was_there=first)

    def _show(self, job: Job, state: RunState, *, was_there: bool) -> None:
        if state.status == RUNNING:
            show_job(job, "running elsewhere" if was_there else "runs")
            return
        show_job(job, state.text, "before" if was_there else "")
        if state.status == FAILED:
            show_error(job.path, state)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop.exists():
            raise KeyboardInterrupt
        self.stop.touch()
        print("Stopping: the jobs write their checkpoints. Once more ends the wait for them.", flush=True)
