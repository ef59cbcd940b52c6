"""The command line: compose, validate, hand over. Imports no torch, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.config import CONF, one_option_each, validate
from runner.experiments import without_replaced
from runner.method_folder import add_search_path, search_folders
from runner.overrides import as_typed, prepare_overrides
from runner.remedies import explain, refuse
from runner.run_folder import earlier_overrides
from runner.settings import SettingError
from runner.study import with_axes
from runner.sweep import conf_folders, finish_sweep, job_of, name_sweep

DONE, FAILED, INTERRUPTED = 0, 1, 130  # a wrong setting is 2, see runner.remedies


def main() -> None:
    """Run an experiment, or a sweep of them, as the command line says; ends with one of the exit codes above."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing: errors are shown below, in one place
    arguments = sys.argv[1:]
    statuses: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(composed: DictConfig) -> str:
        settings = HydraConfig.get()
        try:
            one_option_each(settings.runtime.choices)
            folders = conf_folders(settings)
            config = validate(without_replaced(composed, settings.overrides.task, folders), folders)
        except SettingError as error:
            refuse(error)
        from runner import experiment  # imports torch

        planned = job_of(settings)
        overrides = [word for word in as_typed(settings.overrides.task) if not word.startswith("resume=")]
        command = ["python", "-m", "runner", *(planned.overrides if planned else arguments)]
        try:
            statuses.append(experiment.run(config, overrides, command, planned))
        except SettingError as error:
            refuse(error)
        if statuses[-1] == "interrupted":
            if planned:
                finish_sweep(planned.folder)
            raise SystemExit(INTERRUPTED)  # out of a sweep too: its other jobs are not started
        return statuses[-1]

    try:
        words = prepare_overrides(with_axes(add_search_path(earlier_overrides(arguments))))
        sys.argv[1:] = name_sweep(words, typed=arguments)
        job()
    except SettingError as error:
        refuse(error)
    except KeyboardInterrupt:  # before a run has begun
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        if statuses:
            raise  # a fault of ours, not of the settings
        overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
        refuse(explain(overrides, error, search_folders(overrides), sweeping="-m" in sys.argv))
    raise SystemExit(FAILED if "failed" in statuses else DONE)


if __name__ == "__main__":
    main()
