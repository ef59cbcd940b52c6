"""The command line: read it, compose, validate, hand over. Imports no torch, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.commands import answer
from runner.config.diagnose import diagnose, exit_config_error
from runner.config.extensions import search_folders
from runner.config.hydra_loader import checked
from runner.config.options import CONF
from runner.config.overrides import as_typed
from runner.config.secrets import redact
from runner.config.text import SettingError
from runner.distributed.signals import raise_on_signal
from runner.files.atomic import CannotWrite
from runner.sweeps.command_line import CommandLine
from runner.sweeps.planned_sweep import PlannedSweep
from runner.sweeps.sweep import CallbackFailed, settings_of
from runner.tracking.console import RunConsole
from runner.tracking.tracker import EXIT_CODES  # a wrong setting is 2, see runner.config.diagnose

WRONG = (HydraException, OmegaConfBaseException, YAMLError, ValueError)  # what wrong settings raise


def main() -> None:
    """Run the command line, which SIGTERM ends as Ctrl-C does; ends with an exit code."""
    with raise_on_signal():
        if answer(sys.argv[1:]):
            raise SystemExit
        raise SystemExit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    """Run an experiment, or a sweep of them, as the command line says; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing: errors are shown below, in one place
    sweep, statuses = PlannedSweep(), []
    interrupted = broken = False
    try:
        line = CommandLine.read(arguments)
        sweep = PlannedSweep(line.typed, is_only_planned=line.is_plan)

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
        def job(composed: DictConfig) -> str:
            statuses.append(_run_job(composed, line, sweep))
            return statuses[-1]

        sys.argv[1:] = line.words
        with checked(line.words, typed=line.given, sweep=sweep):
            try:
                sweep.launch(job)
            except CallbackFailed as carrier:
                raise carrier.error from None
    except SettingError as error:
        exit_config_error(error)
    except KeyboardInterrupt:
        interrupted = True
    except CannotWrite as error:
        _fail(error)
    except Exception as error:
        if sweep.jobs:  # its launcher failed; what came of the jobs is in their folders
            RunConsole().message(redact(traceback.format_exc().rstrip()), "error")
            broken = True
        elif statuses or not isinstance(error, WRONG):
            raise
        else:
            overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
            exit_config_error(diagnose(overrides, error, search_folders(overrides), sweeping="-m" in sys.argv))
    was_stopped = sweep.stop_watching(at_once=interrupted or broken)
    if sweep.jobs:
        return sweep.end(interrupted=interrupted or was_stopped, broken=broken)
    if interrupted:  # before a run has begun
        print("Interrupted.", file=sys.stderr)
    return EXIT_CODES["interrupted" if interrupted else statuses[-1] if statuses else "completed"]


def _run_job(composed: DictConfig, line: CommandLine, sweep: PlannedSweep) -> str:
    """What Hydra calls for a run, and for each job of a sweep, which was composed and validated when it was planned."""
    settings = HydraConfig.get()
    overrides = as_typed(OmegaConf.to_container(settings.overrides.task, resolve=False))
    try:
        if settings.mode == RunMode.MULTIRUN:
            status = sweep.run(overrides, settings.job.num + 1)
        else:
            overrides = [word for word in overrides if not word.startswith("resume=")]
            config = settings_of(composed, settings, OmegaConf.to_container(settings.overrides.task, resolve=False))
            if line.is_plan:
                from runner.sweeps.forecast import show_run

                show_run(config, overrides)
                return "completed"
            RunConsole().preparing(f"{config.model.name} on {config.dataset.name}")
            from runner.experiment.processes import run  # imports torch

            return run(config, overrides, ["python", "-m", "runner", *line.given])
    except SettingError as error:
        exit_config_error(error)
    except CannotWrite as error:
        _fail(error)
    if status == "interrupted" and not sweep.is_elsewhere:
        raise KeyboardInterrupt  # out of the sweep: its other jobs are not started
    return status


def _fail(error: CannotWrite) -> NoReturn:
    """End the program where no run can begin, for want of room say."""
    RunConsole().message(str(error), "error")
    raise SystemExit(EXIT_CODES["failed"])


if __name__ == "__main__":
    main()
