"""Sweeps (`-m`): the folder's name, every job's settings checked before the first starts, the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runner.config import CONF, METHOD_GROUPS, one_option_each, validate
from runner.experiments import without_replaced
from runner.grammar import is_swept, parsed
from runner.job import Job, job_name
from runner.method_folder import search_folders
from runner.option_types import OPTION_TYPES
from runner.overrides import as_typed
from runner.remedies import CASE, EXPERIMENT, explain, refuse
from runner.settings import SettingError
from runner.study import study_of, write_sweep

_jobs_planned = 1  # in the process that started the sweep; elsewhere a job does not know how many there are
_typed: list[str] = []  # there too: the command line as it was before anything was added


def name_sweep(arguments: Sequence[str], typed: Sequence[str] = ()) -> list[str]:
    """The command line's arguments with a `sweep.name` for a sweep that has none: the study, or the swept keys, and
    the time. `typed` is the command line as the user wrote it, to be recorded.

    The flag -m goes to the front: Hydra takes no override behind a flag that stands between overrides.
    """
    _typed[:] = typed or arguments
    overrides = [word for word in arguments if word not in ("-m", "--multirun")]
    if len(overrides) == len(arguments):
        return list(arguments)
    if any(word.startswith("sweep.name=") for word in arguments):
        return ["-m", *_put_off(overrides)]
    studies = [word.partition("=")[2] for word in overrides if word.startswith(f"{EXPERIMENT}=") and not is_swept(word)]
    swept = [parsed(word).key_or_group.rpartition(".")[2] for word in overrides if is_swept(word)]
    overrides = _put_off(overrides)
    name = "-".join([*(study.replace("/", "-") for study in studies or swept[:4]), time.strftime("%Y%m%d-%H%M%S")])
    return ["-m", *overrides, f"sweep.name={name}"]


def _put_off(overrides: Sequence[str]) -> list[str]:
    """`overrides`, where a setting of an option or a method whose group is swept becomes a sweep of one value.

    Hydra composes a sweep once without what is swept, so `agc.clip=0.02` under `norm=[agc],[agc,none]` would find no
    node agc there.
    """
    records = any(is_swept(word, group) for word in overrides for group in (EXPERIMENT, CASE))
    swept = [group for group in METHOD_GROUPS if records or any(is_swept(word, group) for word in overrides)]
    folders = [folder / group for folder in search_folders(overrides) for group in swept]
    methods = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    groups = {group for group in OPTION_TYPES if records or any(is_swept(word, group) for word in overrides)}
    return [
        f"{key}=choice({value})" if _belongs(key, methods, groups) and not is_swept(word, key) else word
        for word in overrides
        for key, _, value in [word.partition("=")]
    ]


def _belongs(key: str, methods: Collection[str], groups: Collection[str]) -> bool:
    """Whether `key` is a setting of one of the methods, or of an option of one of the groups."""
    node, _, rest = key.partition(".")
    return node in methods or (bool(rest) and node in groups)


def job_of(hydra: DictConfig) -> Job | None:
    """The job that Hydra runs now, or None for a single run."""
    if hydra.mode != RunMode.MULTIRUN:
        return None
    overrides = tuple(as_typed(hydra.overrides.task))
    # known in the process of the command line alone, which with Hydra's basic launcher is this one
    varied = {parsed(word).key_or_group for word in sys.argv if is_swept(word)}
    number = hydra.job.num + 1
    return Job(job_name(overrides, varied), number, max(_jobs_planned, number), Path(hydra.sweep.dir), overrides)


def conf_folders(hydra: DictConfig | None = None) -> list[Path]:
    """The folders with configuration groups: this package's and those that the command line added."""
    sources = (hydra or HydraConfig.get()).runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    return [CONF, *(folder for folder in folders if folder != CONF and folder.is_dir())]


class SweepCallback(Callback):
    """Hydra's hooks around a sweep."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Compose, validate and build (without memory or data) every job; a wrong one ends the sweep at once."""
        global _jobs_planned
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(config.hydra.overrides.task))
        jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
        _jobs_planned = len(jobs)
        folders = conf_folders(config.hydra)
        try:
            configs = []
            for job in jobs:
                try:
                    composed = loader.load_sweep_config(config, list(job))
                    one_option_each(composed.hydra.runtime.choices)
                    configs.append(validate(without_replaced(composed, job, folders), folders))
                except (HydraException, OmegaConfBaseException, SettingError) as error:
                    raise explain(job, error, folders, sweep=list(config.hydra.overrides.task)) from None
            study = study_of(config.sweep, [as_typed(job) for job in jobs])
            from runner.checked import check  # imports torch

            for job_config in configs:
                check(job_config)
        except SettingError as error:
            refuse(error)
        write_sweep(Path(config.hydra.sweep.dir), study, _typed)

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Show the table and the verdicts, and write the report."""
        finish_sweep(Path(config.hydra.sweep.dir))


def finish_sweep(folder: Path) -> None:
    """Print the table of a sweep's jobs, and of a study the verdicts; write report and results.csv."""
    from runner.report.report import read_report
    from runner.report.sweep_table import print_sweep
    from runner.report.verdict_table import print_verdicts

    report = read_report(folder, into=folder)
    print_sweep(report.runs, title=f"Sweep {folder}")
    print_verdicts(report.verdicts)
    print(f"Report: {report.write()}")
