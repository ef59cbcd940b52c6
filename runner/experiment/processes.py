"""An experiment in as many processes as `train.num_devices` says, and what is left to say if one of them dies."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.secrets import redact
from runner.config.settings import Settings
from runner.distributed import environment
from runner.experiment import run as experiment
from runner.experiment.check import check
from runner.experiment.entry import resume_command
from runner.results.job import Job
from runner.results.run_folder import RunFolder
from runner.tracking.console import RunConsole
from runner.tracking.sweep_console import SweepConsole
from runner.training.precision import choose_device

if TYPE_CHECKING:
    from runner.distributed.launch import RanksFailed


def run(
    settings: Settings,
    overrides: list[str],
    command: list[str],
    job: Job | None = None,
    console: SweepConsole | None = None,
) -> str:
    """`experiment.run` in each process. Raises SettingError before anything is written."""
    train = settings.train
    function = partial(experiment.run, settings, overrides, command, job, console)
    if train.num_devices == 1:
        return function()
    from runner.distributed import collectives
    from runner.distributed.launch import RanksFailed, launch, own_device  # imports torch's elastic, which takes time

    if environment.world_size() > 1:
        with collectives.process_group(own_device(choose_device(train.device)), timeout=train.rank_timeout):
            return function()
    device = check(settings).precision.device
    try:
        return launch(function, num_devices=train.num_devices, device=device, timeout=train.rank_timeout)
    except RanksFailed as failure:
        return _record_failure(failure, settings)


def _record_failure(failure: RanksFailed, settings: Settings) -> str:
    """Show why the ranks ended, and write it into the run's folder if rank 0 had one; returns the status."""
    console = RunConsole()
    console.message(redact(str(failure)), "warning" if failure.were_killed else "error")
    if failure.announced is not None:
        folder = RunFolder(Path(failure.announced))
        summary = {"metrics": {}, "best": {}, **folder.read_summary()}
        if failure.were_killed:
            folder.write_summary({**summary, "status": "interrupted"})
        else:
            folder.write_failure(str(failure), f"{failure}\n{failure.trace}", summary)
        console.message(f"go on with: {resume_command(folder, settings)}")
    return "interrupted" if failure.were_killed else "failed"
