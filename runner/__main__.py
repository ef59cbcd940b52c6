"""The command line: compose, validate, hand over. Imports no torch, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.commands import answer
from runner.config.arguments import hydra_words
from runner.config.diagnose import diagnose, exit_config_error
from runner.config.extensions import add_search_path, search_folders
from runner.config.hydra_loader import checked
from runner.config.overrides import as_typed, prepare_overrides
from runner.config.secrets import redact
from runner.config.text import SettingError
from runner.config.validation import CONF
from runner.distributed.environment import with_num_devices
from runner.distributed.signals import raise_on_signal
from runner.experiment.earlier_overrides import earlier_overrides
from runner.files.atomic import CannotWrite
from runner.sweeps.job_run import run_job
from runner.sweeps.study import with_axes
from runner.sweeps.sweep import CallbackFailed, job_of, name_sweep, plan_sweep, settings_of, stop_watching
from runner.tracking.console import RunConsole
from runner.tracking.tracker import EXIT_CODES  # a wrong setting is 2, see runner.config.diagnose

WRONG = (HydraException, OmegaConfBaseException, YAMLError, ValueError)  # what wrong settings raise


def main() -> None:
    """Run the command line, which SIGTERM ends as Ctrl-C does; ends with an exit code."""
    with raise_on_signal():
        if answer(sys.argv[1:]):
            raise SystemExit
        _main()


def _main() -> None:
    """Run an experiment, or a sweep of them, as the command line says; ends with an exit code.

    The word `plan` among the overrides: show what would run, and how long it would take.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing: errors are shown below, in one place
    arguments = [word for word in sys.argv[1:] if word != "plan"]
    sweep = plan_sweep(arguments, only=len(arguments) < len(sys.argv) - 1)
    statuses: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(composed: DictConfig) -> str:
        settings = HydraConfig.get()
        try:
            config = settings_of(composed, settings, OmegaConf.to_container(settings.overrides.task, resolve=False))
            overrides = [word for word in as_typed(settings.overrides.task) if not word.startswith("resume=")]
            planned = job_of(settings, config, sweep)
            if sweep.is_only_planned:
                from runner.sweeps.forecast import show_run

                show_run(config, overrides)
                return "planned"
            if planned is None:
                from runner.distributed import launch  # imports torch

                statuses.append(launch.run(config, overrides, ["python", "-m", "runner", *arguments]))
                return statuses[-1]
            command = ["python", "-m", "runner", *planned.overrides]
            if sweep.is_elsewhere:
                from runner.sweeps.job_process import run_job_apart

                rules = {"retry_failed": sweep.retry_failed, "stop": sweep.stop}
                return run_job_apart(config, overrides, command, planned, **rules)
            from runner.distributed import launch

            status = run_job(launch.run, config, overrides, command, planned, retry_failed=sweep.retry_failed)
        except SettingError as error:
            exit_config_error(error)
        except CannotWrite as error:
            _fail(error)
        if status == "interrupted":
            raise KeyboardInterrupt  # out of the sweep: its other jobs are not started
        return status

    interrupted = broken = False
    try:
        arguments = with_num_devices(hydra_words(arguments))
        words = prepare_overrides(with_axes(add_search_path(earlier_overrides(arguments))))
        sys.argv[1:] = name_sweep(words)
        with checked(sys.argv[1:], typed=arguments):
            try:
                job()
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
    was_stopped = stop_watching(at_once=interrupted or broken)
    if sweep.jobs:
        raise SystemExit(sweep.end(interrupted=interrupted or was_stopped, broken=broken))
    if interrupted:  # before a run has begun
        print("Interrupted.", file=sys.stderr)
    raise SystemExit(EXIT_CODES["interrupted" if interrupted else statuses[-1] if statuses else "completed"])


def _fail(error: CannotWrite) -> NoReturn:
    """End the program where no run can begin, for want of room say."""
    RunConsole().message(str(error), "error")
    raise SystemExit(EXIT_CODES["failed"])


if __name__ == "__main__":
    main()
