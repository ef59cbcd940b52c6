"""Sweeps (`-m`): the folder's name, every job's settings checked before the first starts, the table at the end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from runner.config.diagnose import diagnose
from runner.config.hydra_loader import CheckedLoader
from runner.config.overrides import as_typed
from runner.config.recipes import without_replaced
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.config.validation import CONF, one_option_each, validate
from runner.files.atomic import CannotWrite, new_folder
from runner.files.readers import is_there
from runner.results.job import Job, config_hash, job_name, varied_keys
from runner.results.run_lock import Taken, hold, sign
from runner.results.run_state import read_state
from runner.sweeps.decision import Decision, added_jobs, arm_key, decides, sweep_seeds, with_totals
from runner.sweeps.job_run import cannot_use
from runner.sweeps.jobs_at_once import AUTO, check_one_way, choose, use_joblib
from runner.sweeps.launcher_watch import LauncherWatch
from runner.sweeps.mixing import refuse_strays
from runner.sweeps.planned_sweep import NAME, PATIENCE_SECONDS, PlannedSweep, key_of, sweep_name
from runner.sweeps.study import as_recorded, read_jobs, study_of, write_sweep
from runner.tracking.console import RunConsole

if TYPE_CHECKING:
    from runner.experiment.check import Checked

OF_HYDRA = "multirun.yaml"  # what its sweeper writes into the folder of a sweep
IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def conf_folders(hydra: DictConfig | None = None) -> list[Path]:
    """The folders with configuration groups: this package's and those that the command line added."""
    sources = (hydra or HydraConfig.get()).runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    return [CONF, *(folder for folder in folders if folder != CONF and folder.is_dir())]


def settings_of(composed: DictConfig, hydra: DictConfig, overrides: Sequence[str]) -> Settings:
    """The validated settings of what Hydra composed of `overrides`. Raises SettingError."""
    one_option_each(hydra.runtime.choices)
    folders = conf_folders(hydra)
    return validate(without_replaced(composed, overrides, folders), folders)


def split(config: DictConfig, loader: CheckedLoader) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them. Raises SettingError if there is none."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    words = OverridesParser.create(config_loader=loader).parse_overrides([*params, *_task_words(config)])
    for override in words:
        if override.is_sweep_override() and next(iter(override.sweep_string_iterator()), None) is None:
            raise SettingError(f"{as_typed([override.input_line])[0]}: there is no value in it, so no job to run.")
    return [job for batch in BasicSweeper.split_arguments(words, None) for job in batch]


def validated_jobs(config: DictConfig, loader: CheckedLoader) -> list[tuple[tuple[str, ...], Settings]]:
    """The overrides and the settings of each job of the sweep that Hydra composed as `config`.

    Raises SettingError for the first job whose settings are wrong.
    """
    jobs = []
    for words in split(config, loader):
        try:
            composed = loader.load_sweep_config(config, words)
            jobs.append((tuple(as_typed(words)), settings_of(composed, composed.hydra, words)))
        except (HydraException, OmegaConfBaseException, SettingError) as error:
            raise diagnose(words, error, conf_folders(config.hydra), sweep=_task_words(config)) from None
    return jobs


def named_jobs(jobs: Sequence[tuple[tuple[str, ...], Settings]], folder: Path) -> dict[Job, Settings]:
    """The jobs of a sweep in its folder; one with the settings of a job that the folder has, has its name."""
    recorded = read_jobs(folder)
    varied = varied_keys([*recorded.values(), *(as_recorded(overrides) for overrides, _ in jobs)])
    known = [*(Path(str(name)).name for name in recorded), *(p.name for p in folder.glob("*") if p.is_dir())]
    names = {name.rpartition("-")[2]: name for name in reversed(known)}
    named = {}
    for number, (overrides, settings) in enumerate(jobs, 1):
        digits = config_hash(settings.plain())
        name = names.setdefault(digits, job_name(overrides, digits, varied))
        named[Job(name, number, len(jobs), folder, overrides)] = settings
    return named


class CallbackFailed(BaseException):
    """Carries an error out of a callback of Hydra's, which would make a warning of an Exception and go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class SweepCallback(Callback):
    """Hydra's hook before a sweep. Hydra makes it from its name alone, so its loader carries the sweep."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Compose, validate and build (without memory or data) every job; a wrong one ends the sweep at once."""
        loader = GlobalHydra.instance().config_loader()
        sweep = loader.sweep
        try:
            if sweep.jobs:  # it is launched again
                _moved(config, {}, sweep.folder)
            else:
                plan(sweep, config, loader)
        except Exception as error:  # Hydra would turn it into a warning and go on
            raise CallbackFailed(error) from error
        if sweep.decision is not None:
            sweep_seeds(config, sweep.decision.seeds)
        if sweep.at_once:
            use_joblib(config, sweep.at_once, len(sweep.work))
        if config.hydra.launcher._target_ != IN_THIS_PROCESS and sweep.watch is None:
            sweep.watch = LauncherWatch(sweep.jobs, sweep.stop, sweep.work, decision=sweep.decision)
            if sweep.at_once:
                sweep.watch.console.message(str(sweep.at_once))
            sweep.watch.start()


def plan(sweep: PlannedSweep, config: DictConfig, loader: CheckedLoader) -> None:
    """Fill `sweep`. Nothing is written before all jobs are checked; a name that was made gets a folder of its own.

    Raises SettingError, CannotWrite, and what Hydra raises for settings that it cannot compose.
    """
    folder = Path(config.hydra.sweep.dir)
    jobs = validated_jobs(config, loader)
    probes = {name for _, settings in jobs for name in settings.probe}
    study_of(config.sweep, [overrides for overrides, _ in jobs], probes)
    common = _sweep_settings(config, [settings for _, settings in jobs], sweep.typed)
    adds_seeds = decides(config, common, jobs)
    if adds_seeds:
        jobs.sort(key=lambda job: job[1].seed)
    named = named_jobs([*jobs, *added_jobs(jobs, common.max_seeds, sweep.typed)] if adds_seeds else jobs, folder)
    if adds_seeds:
        named = with_totals(named, len(jobs))
    if not common.mix:
        refuse_strays(folder, named)
    asked = dict(list(named.items())[: len(jobs)])
    if adds_seeds:
        sweep.decision = Decision.of(folder, named, asked, common.budget)
    checked = _checked(asked)
    if not checked and adds_seeds and sweep.decision.is_open():
        checked = _checked({job: named[job] for job in sweep.decision.next_jobs(named)})
    at_once = choose(common, list(checked.values()), len(named))
    if adds_seeds and at_once is not None:
        sweep.decision.at_once = at_once.number
    if sweep.is_only_planned:
        from runner.sweeps.forecast import show_sweep

        show_sweep(folder, list(asked), checked, at_once, sweep.decision)
        raise SystemExit

    def write_record(place: Path) -> None:
        nonlocal folder, named
        folder, named = place, _moved(config, named, place)
        _make_way(folder / OF_HYDRA)
        with hold(folder, wait_seconds=PATIENCE_SECONDS, signed=False):
            recorded = {job.name: job.overrides for job in list(named)[: len(jobs)]}
            write_sweep(folder, config.sweep, recorded, sweep.typed, probes)
            sign(folder)

    try:
        if sweep_name(sweep.typed) is None:
            new_folder(folder.parent, folder.name, write_record)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_record(folder)
    except Taken as error:
        raise SettingError(f"{NAME}={folder.name}: {error} Wait for it, or choose another name.") from None
    except OSError as error:
        raise cannot_use(folder, error) from None
    sweep.folder, sweep.jobs = folder, list(named)
    sweep.settings = {job.name: settings for job, settings in named.items()}
    sweep.retry_failed, sweep.at_once, sweep.work = common.retry_failed, at_once, _work(checked)
    if at_once is None and common.jobs_at_once is None and config.hydra.launcher._target_ == IN_THIS_PROCESS:
        sweep.faster = choose(common.changed({"jobs_at_once": AUTO}), list(checked.values()), len(named))
    if adds_seeds:
        sweep.decision.folder = folder
        _share_work(sweep)
    sweep.stop = folder / f".stop-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


def _sweep_settings(config: DictConfig, jobs: Sequence[Settings], typed: Sequence[str]) -> Settings:
    """The settings `sweep` of all jobs. Raises SettingError if they differ, or do not go with the launcher."""
    common = jobs[0].sweep
    for key in ("jobs_at_once", "jobs_per_device", "decide", "budget", "max_seeds"):
        if any(settings.sweep[key] != common[key] for settings in jobs):
            raise SettingError(f"sweep.{key}: all jobs of a sweep share it; give one value.")
    check_one_way(config, common, typed)
    return common


def _work(checked: Mapping[str, Checked]) -> dict[str, tuple[int, int]]:
    """The optimizer steps of each job that is to run, and the images of a step."""
    if not checked:
        return {}
    from runner.sweeps.forecast import total_steps  # imports torch

    return {
        name: (total_steps(each.settings, len(each.data.train)), each.settings.train.global_batch_size)
        for name, each in checked.items()
    }


def _share_work(sweep: PlannedSweep) -> None:
    """Give the jobs of added seeds the steps of a job of the same arm."""
    arms = {arm_key(job): sweep.work[job.name] for job in sweep.jobs if job.name in sweep.work}
    sweep.work |= {
        job.name: arms[arm_key(job)]
        for job in sweep.jobs
        if arm_key(job) in arms and not read_state(job.path).is_left_alone(retry_failed=sweep.retry_failed)
    }


def _checked(jobs: Mapping[Job, Settings]) -> dict[str, Checked]:
    """What the check of each job that is to run made sure of, by the job's name; of a finished sweep none."""
    waiting = {
        job: settings
        for job, settings in jobs.items()
        if not read_state(job.path).is_left_alone(retry_failed=settings.sweep.retry_failed)
    }
    if not waiting:
        return {}
    RunConsole().preparing(f"{len(waiting)} jobs")
    from runner.experiment.check import check  # imports torch

    return {job.name: check(settings) for job, settings in waiting.items()}


def _make_way(file: Path) -> None:
    """Take away what is no regular file in the place of one that Hydra opens to write: of a FIFO it waits for ever.

    Raises CannotWrite for a folder.
    """
    try:
        if file.is_symlink() or (is_there(file) and not file.is_file()):
            file.unlink()
    except OSError as error:
        raise CannotWrite.from_os_error(file, error) from None


def _task_words(config: DictConfig) -> list[str]:
    """The words that Hydra makes the jobs of, as they were typed: `${...}` is no word's business but its job's."""
    return OmegaConf.to_container(config.hydra.overrides.task, resolve=False)


def _moved(config: DictConfig, jobs: Mapping[Job, Settings], folder: Path) -> Mapping[Job, Settings]:
    """The jobs in a folder of another name, which the configuration that Hydra runs them with gets too."""
    if config.sweep.name == folder.name:
        return jobs

    def renamed(words: Sequence[str]) -> list[str]:
        return [f"{NAME}={folder.name}" if key_of(word) == NAME else word for word in words]

    with flag_override(config, ["readonly", "struct"], False):
        config.sweep.name = folder.name
        config.hydra.overrides.task = renamed(_task_words(config))
    return {
        replace(job, folder=folder, overrides=tuple(renamed(job.overrides))): settings.changed({NAME: folder.name})
        for job, settings in jobs.items()
    }
