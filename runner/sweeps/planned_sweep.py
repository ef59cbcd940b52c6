"""The sweep of a command line: its jobs as they were planned, and how it ends."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from runner.config.grammar import all_parsed, parsed
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.files.atomic import CannotWrite
from runner.results.job import OUTPUT, Job
from runner.results.run_lock import hold
from runner.results.run_state import FAILED, INTERRUPTED, RESULTS, RUNNING, TO_DO, read_state
from runner.sweeps.decision import Decision
from runner.sweeps.job_process import KILL_AFTER_SECONDS, LOOK_EVERY_SECONDS, end_with, run_job_apart
from runner.sweeps.job_run import job_labels, run_job
from runner.sweeps.jobs_at_once import AT_ONCE, AUTO, JobsAtOnce
from runner.sweeps.launcher_watch import LauncherWatch, show_look
from runner.tracking.console import RunConsole, is_plain
from runner.tracking.pace import Pace
from runner.tracking.sweep_console import SweepConsole
from runner.tracking.terminal import terminal
from runner.tracking.tracker import EXIT_CODES
from runner.tracking.wandb_run import upload_command

NAME = "sweep.name"
PLACE = {NAME: f"{NAME}=NAME", "paths.outputs": "paths.outputs=FOLDER"}  # of all jobs, and how it is set
WORTH_SECONDS = 60  # of a job, beside which the start of its process does not count
MOST_DEATHS = 3  # of a launcher's processes, one after the other, without a job that ends meanwhile
PATIENCE_SECONDS = 120  # for another process that writes the sweep's record or report


class StudyOver(BaseException):
    """No job that is left is needed: out of Hydra's loop over them, which would make a failure of an Exception."""


@dataclass
class PlannedSweep:
    """The sweep of a command line, without jobs if there is none.

    It goes to the other processes of a launcher with the function that runs a job, so it holds plain data alone.
    `typed` is the command line as it was before anything was added, and `process` the one that it was typed for.
    """

    typed: Sequence[str] = ()
    is_only_planned: bool = False  # the jobs are to be shown, not run
    folder: Path = Path()
    jobs: list[Job] = field(default_factory=list)
    settings: dict[str, Settings] = field(default_factory=dict)  # of each job by its name, validated
    retry_failed: bool = True
    process: int = field(default_factory=os.getpid)
    faster: JobsAtOnce | None = None  # what could run at once, where one job is to run after the other
    at_once: JobsAtOnce | None = None  # None: a launcher of the command line's, or one job after the other
    work: dict[str, tuple[int, int]] = field(default_factory=dict)  # of each job to run: its steps, the images of one
    stop: Path = Path()  # a file whose existence asks the jobs in other processes to stop
    decision: Decision | None = None  # of a study to which seeds are added
    watch: LauncherWatch | None = None  # over a launcher's processes; it stays in the one that launches
    console: SweepConsole | None = None  # on a terminal, of jobs that run one after the other; it stays here too

    def __getstate__(self) -> dict:
        return {**vars(self), "watch": None, "console": None}

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a process of a launcher, not the one of the command line."""
        return os.getpid() != self.process

    def run(self, overrides: Sequence[str], number: int) -> str:
        """Run the job with these overrides, the `number`th of the sweep; returns its status.

        In a launcher's process it gets a process of its own.
        """
        in_order = tuple if self.decision is None else sorted  # a decision has put the seed first
        alike = [job for job in self.jobs if in_order(job.overrides) == in_order(overrides)]
        job = next((job for job in alike if job.number == number), alike[0])  # shuffle(0,1) is shuffled anew
        if self.decision is not None:
            if not self.is_elsewhere:
                self._show_news()
            if not self.decision.wants(job):
                later = (each for each in self.jobs if each.number > job.number)
                if not self.is_elsewhere and not any(map(self.decision.wants, later)):
                    raise StudyOver
                return TO_DO
        if self.is_elsewhere:
            if os.getppid() == self.process:  # joblib's processes outlive the one that started them
                end_with(self.process)
            elif self.at_once:
                return INTERRUPTED
            options = {"retry_failed": self.retry_failed, "stop": self.stop, "at_once": self.at_once}
            return run_job_apart(self.settings[job.name], job, **options)
        began = time.monotonic()
        settings, console = self.settings[job.name], self._console()
        if console is None:
            status = run_job(settings, job, retry_failed=self.retry_failed)
        else:
            status = self._run_shown(settings, job, console)
        if self.faster is not None and time.monotonic() - began > WORTH_SECONDS and job.number < len(self.jobs):
            RunConsole().message(f"With {AT_ONCE}={AUTO} the sweep would take less time: {self.faster}.")
            self.faster = None  # said once
        return status

    def _console(self) -> SweepConsole | None:
        """The live display; None without a terminal, where each job prints its lines."""
        if self.console is None and not is_plain(terminal()):
            asked = {job.name for job in self.jobs} if self.decision is None else self.decision.asked
            self.console = SweepConsole(job_labels(self.jobs), Pace(self.work, self.work.keys() - asked))
            self.console.message(f"{len(asked)} jobs. What each prints goes to {self.folder}/JOB/{OUTPUT}.")
        return self.console

    def _run_shown(self, settings: Settings, job: Job, console: SweepConsole) -> str:
        """Run a job whose lines go to its folder, and show a line when it has ended."""
        began = time.monotonic()
        if settings.train.num_devices == 1 and job.name in self.work:  # several ranks have a display of their own
            console.at_work(job, 0, "begins")
        try:
            status = run_job(settings, job, retry_failed=self.retry_failed, console=console)
        finally:
            console.stop()
        if status in (*RESULTS, FAILED, INTERRUPTED) and job.name in self.work:
            console.ended(job, read_state(job.path), seconds=time.monotonic() - began)
        return status

    def _show_news(self) -> None:
        """Say what the last look at a study's claims has decided, unless the watch over a launcher does."""
        if self.watch is None:
            show_look(RunConsole(), self.decision.news())

    def launch(self, hydra_main: Callable[[], object]) -> None:
        """Call `hydra_main`, which starts the jobs, and again for those that are left where a launcher's process died.

        joblib ends all of its processes then, and with them their jobs, which go on from their last checkpoints.
        Raises BrokenProcessPool if that happens again and again without a job that ends.
        """
        deaths, before = 0, 0
        while True:
            try:
                hydra_main()
            except StudyOver:
                return
            except BrokenProcessPool:
                done = sum(status in (*RESULTS, FAILED) for status in self._statuses())
                deaths, before = (deaths + 1 if done == before else 1), done
                if self.watch is None or self.stop.exists() or deaths > MOST_DEATHS:
                    raise
                self.watch.console.message("A process of the launcher died. Its jobs go on in new ones.", "warning")
                end = time.monotonic() + KILL_AFTER_SECONDS
                while RUNNING in self._statuses() and time.monotonic() < end:  # until they have ended
                    time.sleep(LOOK_EVERY_SECONDS)
            else:
                return

    def _statuses(self) -> list[str]:
        return [read_state(job.path).status for job in self.jobs]

    def stop_watching(self, *, at_once: bool = False) -> bool:
        """End the watch over a launcher, if there is one; whether a signal came to it.

        `at_once` if the launcher's processes may still be at work, or begin: these are to find that they should stop.
        """
        if self.watch is None:
            return False
        was_stopped = self.watch.finish()
        if not at_once:
            for mark in self.stop.parent.glob(f"{self.stop.name}*"):  # and those of the launcher's processes
                mark.unlink(missing_ok=True)
        return was_stopped

    def end(self, *, interrupted: bool, broken: bool) -> int:
        """Show and write what came of all jobs in the folder; returns the exit code.

        `interrupted` if a signal ended the sweep, `broken` if its launcher failed; the code of a report that cannot be
        written, on a full disk, is 1 too.
        """
        states = [read_state(job.path) for job in self.jobs]
        if self.decision is not None and not interrupted:
            self._show_news()
            RunConsole().message(self.decision.ending())
            states = [state for state in states if state.status != TO_DO]  # not needed, or no time for them
        try:
            self._report()
        except OSError as error:
            RunConsole().message(str(CannotWrite.from_os_error(self.folder, error)), "error")
            broken = True
        left = [state for state in states if state.status not in (*RESULTS, RUNNING)]
        interrupted = interrupted or any(state.status == INTERRUPTED and state.summary for state in left)
        if interrupted or any(state.status != FAILED for state in left):
            words = self.typed
            if sweep_name(words) is None:
                words = [*(word for word in words if key_of(word) != NAME), f"{NAME}={self.folder.name}"]
            print(f"Go on with the sweep: python -m runner {shlex.join(words)}", flush=True)
        if interrupted:
            return EXIT_CODES["interrupted"]
        return EXIT_CODES["failed" if left or broken else "completed"]

    def _report(self) -> None:
        """Print the table of all jobs in the folder, and of a study the verdicts; write report and results.csv."""
        from runner.report.report import read_report
        from runner.report.sweep_table import print_sweep
        from runner.report.verdict_table import print_verdicts

        with hold(self.folder, wait_seconds=PATIENCE_SECONDS):
            try:
                report = read_report(self.folder, into=self.folder)
            except ValueError:  # not one job has begun
                print(f"Sweep {self.folder}: {len(self.jobs)} jobs to do", flush=True)
                return
            to_do = report.sweep.without_run(self.folder)
            print_sweep(report.runs, title=f"Sweep {self.folder}", sweep=report.sweep, to_do=to_do)
            print_verdicts(report.verdicts)
            print(f"Report: {report.write()}", flush=True)
            if any(settings.wandb.mode == "offline" for settings in self.settings.values()):
                print(f"W&B: {upload_command(self.folder)}  (needs an account)", flush=True)


def sweep_name(words: Sequence[str]) -> str | None:
    """The `sweep.name` among the words of a command line; None without one.

    Raises SettingError if it is swept, or the folder that it lies in.
    """
    place = {key: [override for override in all_parsed(words) if override.key_or_group == key] for key in PLACE}
    for key, overrides in place.items():
        for override in overrides:
            if override.is_sweep_override():
                raise SettingError(f"{override.input_line}: all jobs of a sweep lie in one folder; set {PLACE[key]}.")
    given = place[NAME]
    value = given[-1].value() if given else None
    return None if value is None else str(value)


def key_of(word: str) -> str | None:
    """The key that the override `word` sets; None of a flag, and of what is no override."""
    override = parsed(word)
    return override and override.key_or_group
