"""The sweep of a command line: its jobs as they were planned, and how it ends."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from runner.runs.job import Job
from runner.runs.run_lock import hold
from runner.runs.run_state import FAILED, INTERRUPTED, RESULTS, RUNNING, read_state

PATIENCE_SECONDS = 120  # for another process that writes the sweep's record or report
DONE, A_JOB_FAILED, WAS_INTERRUPTED = 0, 1, 130  # exit codes


@dataclass
class PlannedSweep:
    """The sweep of a command line, without jobs if there is none.

    It goes with the function that runs a job to the other processes of a launcher, so it holds plain data alone.
    `typed` is the command line as it was before anything was added, and `process` the one that it was typed for.
    """

    typed: list[str]
    folder: Path = Path()
    jobs: list[Job] = field(default_factory=list)
    is_only_planned: bool = False
    retry_failed: bool = True
    process: int = field(default_factory=os.getpid)
    stop: Path = Path()  # a file whose existence asks the jobs in other processes to stop

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a process of a launcher, not the one of the command line."""
        return os.getpid() != self.process

    def end(self, *, interrupted: bool, broken: bool) -> int:
        """Show and write what came of all jobs in the folder; returns the exit code.

        `interrupted` if a signal ended the sweep, `broken` if its launcher failed.
        """
        states = [read_state(job.path) for job in self.jobs]
        self._report()
        left = [state for state in states if state.status not in (*RESULTS, RUNNING)]
        interrupted = interrupted or any(state.status == INTERRUPTED and state.summary for state in left)
        if interrupted or any(state.status != FAILED for state in left):
            named = any(word.startswith("sweep.name=") for word in self.typed)
            words = self.typed if named else [*self.typed, f"sweep.name={self.folder.name}"]
            print(f"Go on with the sweep: python -m runner {shlex.join(words)}", flush=True)
        if interrupted:
            return WAS_INTERRUPTED
        return A_JOB_FAILED if left or broken else DONE

    def _report(self) -> None:
        """Print the table of all jobs in the folder, and of a study the verdicts; write report and results.csv."""
        from runner.report.report import read_report
        from runner.report.sweep_table import print_sweep
        from runner.report.verdict_table import print_verdicts

        with hold(self.folder, wait_seconds=PATIENCE_SECONDS):
            try:
                report = read_report(self.folder, into=self.folder)
            except ValueError:  # not one job has begun
                return
            print_sweep(report.runs, title=f"Sweep {self.folder}", sweep=report.sweep)
            print_verdicts(report.verdicts)
            print(f"Report: {report.write()}", flush=True)
