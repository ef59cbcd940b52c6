"""Jobs that go into the folder of a sweep that is there, and do not belong to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from runner.config.settings import Settings
from runner.config.text import SettingError, shortened
from runner.results.job import Job
from runner.results.run_state import TO_DO
from runner.results.runs import Run, holds_run, read_runs
from runner.results.strays import shared_overrides, strays
from runner.sweeps.study import as_recorded, read_jobs

MOST_READ = 100  # runs of the sweep that new jobs are compared with


def refuse_strays(folder: Path, jobs: Mapping[Job, Settings]) -> None:
    """Raise SettingError for a new job that shares no setting with the sweep in `folder`, with the remedies."""
    recorded = read_jobs(folder)
    new = {job: settings for job, settings in jobs.items() if job.name not in recorded}
    there = [folder / name for name in recorded if holds_run(folder / name)][:MOST_READ]
    if not new or not there:
        return
    runs = read_runs(there)
    candidates = [
        Run(job.path, TO_DO, tuple(as_recorded(job.overrides)), resolved=settings.plain())
        for job, settings in new.items()
    ]
    if alien := strays(candidates, runs):
        words = shlex.join(alien[0].overrides) or "a job without overrides"
        raise SettingError(
            f"sweep.name={folder.name}: its jobs share {shortened(shlex.join(shared_overrides(runs)))}, and {words} "
            "has none of it, and other data or another model. Type the rest too, choose another sweep.name, or add "
            "sweep.mix=true if they belong together."
        )
