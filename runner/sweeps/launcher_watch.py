"""What the process of the command line does while a launcher's other processes run the jobs of a sweep.

A thread looks at the jobs' folders and shows what becomes of each: where the jobs run, in this machine or another, what
they print is in their folders. The first Ctrl-C (or SIGTERM) asks all of them to stop, through a file that they look
for, since they need not be children of this process; they write their checkpoints. The second ends the wait for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from runner.distributed.signals import handle_stop_signals
from runner.results.job import Job
from runner.results.run_state import FAILED, INTERRUPTED, RESULTS, RUNNING, TO_DO, RunState, read_state
from runner.sweeps.decision import Decision
from runner.sweeps.job_run import error_of, job_labels
from runner.tracking.console import RunConsole
from runner.tracking.pace import Pace
from runner.tracking.sweep_console import Progress, SweepConsole

LOOK_EVERY_SECONDS = 1.0


class LauncherWatch:
    """Watches `jobs` from `start` to `finish`; `stop` is the file by which they are asked to stop.

    `work` has the optimizer steps of each job that is to run and the images of a step, by the job's name.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        stop: Path,
        work: Mapping[str, tuple[int, int]] | None = None,
        *,
        decision: Decision | None = None,
        console: SweepConsole | None = None,
    ) -> None:
        self.stop = stop
        self.console = console or SweepConsole(job_labels(jobs))
        self._jobs = {job.name: job for job in reversed(jobs)}
        self._decision = decision
        asked = {*self._jobs} if decision is None else decision.asked
        self._added = {*self._jobs} - asked  # which count from the moment when they begin
        self._seen: dict[str, str] = {}
        self._began: dict[str, float] = {}  # when a job was first seen at work
        self._last_look = time.monotonic()
        self._pace = Pace(work or {}, self._added)
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
        self.console.stop()
        return self.stop.exists()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_SECONDS):
            self._look()

    def _look(self, *, first: bool = False) -> None:
        """Say what has changed since the last look; before the first there is nothing to say of what is to be run."""
        running = []
        for name, job in self._jobs.items():
            before = self._seen.get(name)
            if before in RESULTS:
                continue
            state = read_state(job.path)
            self._seen[name] = state.status
            self._pace.note(name, state)
            if state.status == RUNNING:
                running.append((self.console.label(job), self._pace.shares.get(name, 0.0)))
            if state.status == before or state.status == TO_DO:
                continue
            if first and state.status in (FAILED, INTERRUPTED):
                continue
            if state.status == INTERRUPTED and not state.summary:
                continue  # it died, of which the process above it tells
            self._show(job, state, was_there=first)
        if first:
            self._pace.begin()
        self._last_look = time.monotonic()
        if not self._over.is_set():
            share, left = self._pace.read()
            total = len([name for name in self._jobs if name not in self._added or self._seen[name] != TO_DO])
            self.console.progress(Progress(running, self._done(), total, share, left))
        if self._decision is not None:
            show_look(self.console, self._decision.news())

    def _done(self) -> int:
        return sum(status in (*RESULTS, FAILED) for status in self._seen.values())

    def _show(self, job: Job, state: RunState, *, was_there: bool) -> None:
        if state.status == RUNNING:
            self._began[job.name] = time.monotonic()
            self.console.running(job, "elsewhere" if was_there else "")
            return
        seconds = time.monotonic() - self._began.get(job.name, self._last_look)
        self.console.ended(job, state, done=self._done(), seconds=None if was_there else seconds)
        if state.status == FAILED:
            self.console.message(error_of(job.path, state), "error")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop.exists():
            raise KeyboardInterrupt
        self.stop.touch()
        print("Stopping: the jobs write their checkpoints. Once more ends the wait for them.", flush=True)


def show_look(console: SweepConsole | RunConsole, lines: Sequence[str]) -> None:
    """Show what a look at a study's claims has decided."""
    for line in lines:
        console.message(line)
