"""Sweeps (`-m`): the folder's name, every job's settings checked before the first starts, the table at the end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from runner.config.diagnose import CASE, EXPERIMENT, diagnose
from runner.config.extensions import search_folders
from runner.config.grammar import is_swept, parsed
from runner.config.options import SINGLE_GROUPS
from runner.config.overrides import as_typed
from runner.config.recipes import without_replaced
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.config.validation import CONF, METHOD_GROUPS, one_option_each, validate
from runner.files.atomic import CannotWrite, new_folder
from runner.files.readers import is_there
from runner.results.job import Job, config_hash, job_name
from runner.results.run_lock import Taken, hold
from runner.sweeps.job_run import cannot_use
from runner.sweeps.launcher_watch import LauncherWatch
from runner.sweeps.planned_sweep import NAME, PATIENCE_SECONDS, PlannedSweep, key_of, sweep_name
from runner.sweeps.study import read_jobs, study_of, write_sweep

OF_HYDRA = "multirun.yaml"  # what its sweeper writes into the folder of a sweep
IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

_planned = PlannedSweep([])  # that of the command line that runs in this process
_watch: LauncherWatch | None = None


def plan_sweep(typed: Sequence[str], *, only: bool = False) -> PlannedSweep:
    """The sweep of the command line `typed`, which Hydra's hooks fill as soon as they know its jobs.

    `only` if the jobs are to be shown, not run.
    """
    global _planned
    _planned = PlannedSweep(list(typed), is_only_planned=only)
    return _planned


def name_sweep(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments with a `sweep.name` for a sweep that has none: the study, or the swept keys, and
    the time.

    The flag -m goes to the front: Hydra takes no override behind a flag that stands between overrides.
    """
    overrides = [word for word in arguments if word not in ("-m", "--multirun")]
    if len(overrides) == len(arguments):
        return list(arguments)
    given = sweep_name(overrides)
    overrides = [word for word in overrides if given is not None or key_of(word) != NAME]
    if given is not None:
        return ["-m", *_put_off(overrides)]
    studies = [word.partition("=")[2] for word in overrides if word.startswith(f"{EXPERIMENT}=") and not is_swept(word)]
    swept = [parsed(word).key_or_group.rpartition(".")[2] for word in overrides if is_swept(word)]
    overrides = _put_off(overrides)
    name = "-".join([*(study.replace("/", "-") for study in studies or swept[:4]), time.strftime("%Y%m%d-%H%M%S")])
    return ["-m", *overrides, f"{NAME}={name}"]


def _put_off(overrides: Sequence[str]) -> list[str]:
    """`overrides`, where a setting of an option or a method whose group is swept becomes a sweep of one value.

    Hydra composes a sweep once without what is swept, so `agc.clip=0.02` under `norm=[agc],[agc,none]` would find no
    node agc there.
    """
    records = any(is_swept(word, group) for word in overrides for group in (EXPERIMENT, CASE))
    swept = [group for group in METHOD_GROUPS if records or any(is_swept(word, group) for word in overrides)]
    folders = [folder / group for folder in search_folders(overrides) for group in swept]
    methods = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    groups = {group for group in SINGLE_GROUPS if records or any(is_swept(word, group) for word in overrides)}
    return [
        f"{key}=choice({value})" if _belongs(key, methods, groups) and not is_swept(word, key) else word
        for word in overrides
        for key, _, value in [word.partition("=")]
    ]


def _belongs(key: str, methods: Collection[str], groups: Collection[str]) -> bool:
    """Whether `key` is a setting of one of the methods, or of an option of one of the groups."""
    node, _, rest = key.partition(".")
    return node in methods or (bool(rest) and node in groups)


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


def split(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them. Raises SettingError if there is none."""
    loader = GlobalHydra.instance().config_loader()
    parsed_words = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    for override in parsed_words:
        if override.is_sweep_override() and next(iter(override.sweep_string_iterator()), None) is None:
            raise SettingError(f"{as_typed([override.input_line])[0]}: there is no value in it, so no job to run.")
    return [job for batch in BasicSweeper.split_arguments(parsed_words, None) for job in batch]


def planned_jobs(
    jobs: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], DictConfig],
    folder: Path,
    *,
    sweep: Sequence[str],
    hydra: DictConfig,
) -> list[tuple[Job, Settings]]:
    """Each job of a sweep with its validated configuration, which `compose` gives, with Hydra's node, for overrides.

    `sweep` are the overrides of the whole sweep. A job with the settings of one that the folder has, has its name.
    Raises SettingError for the first job whose settings are wrong; writes nothing.
    """
    varied = {parsed(word).key_or_group for word in sweep if is_swept(word)}
    checked = []
    for words in jobs:
        try:
            composed = compose(words)
            config = settings_of(composed, composed.hydra, words)
            typed = tuple(as_typed(composed.hydra.overrides.task))
        except (HydraException, OmegaConfBaseException, SettingError) as error:
            raise diagnose(words, error, conf_folders(hydra), sweep=list(sweep)) from None
        checked.append((typed, config))
    known = [  # only now: the check of a job is that of the folder's name too
        *(Path(str(name)).name for name in read_jobs(folder)),
        *(path.name for path in folder.glob("*") if path.is_dir()),
    ]
    names = {name.rpartition("-")[2]: name for name in reversed(known)}
    found = []
    for number, (typed, config) in enumerate(checked, 1):
        digits = config_hash(config.plain())
        name = names.setdefault(digits, job_name(typed, digits, varied))
        found.append((Job(name, number, len(jobs), folder, typed), config))
    return found


def job_of(hydra: DictConfig, config: Settings, sweep: PlannedSweep) -> Job | None:
    """The job that Hydra runs now, or None for a single run."""
    if hydra.mode != RunMode.MULTIRUN:
        return None
    overrides, number = tuple(as_typed(hydra.overrides.task)), hydra.job.num + 1
    for job in sweep.jobs:
        if (job.overrides, job.number) == (overrides, number):
            return job
    name = job_name(overrides, config_hash(config.plain()))  # of a sweeper that makes jobs on the way
    return Job(name, number, max(len(sweep.jobs), number), Path(hydra.sweep.dir), overrides)


class CallbackFailed(BaseException):
    """Carries an error out of a callback of Hydra's, which would make a warning of an Exception and go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class SweepCallback(Callback):
    """Hydra's hooks around a sweep."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Compose, validate and build (without memory or data) every job; a wrong one ends the sweep at once."""
        global _watch
        try:
            _plan(config)
        except Exception as error:
            raise CallbackFailed(error) from error
        if config.hydra.launcher._target_ != IN_THIS_PROCESS:
            _watch = LauncherWatch(_planned.jobs, _planned.stop)
            _watch.start()


def _plan(config: DictConfig) -> None:
    """Fill `_planned`. Nothing is written before all jobs are checked; a name that was made gets a folder of its own.

    Raises SettingError, CannotWrite, and what Hydra raises for settings that it cannot compose.
    """
    loader, sweep = GlobalHydra.instance().config_loader(), _task_words(config)
    folder = Path(config.hydra.sweep.dir)
    found = planned_jobs(
        split(sweep),
        lambda words: loader.load_sweep_config(config, list(words)),
        folder,
        sweep=sweep,
        hydra=config.hydra,
    )
    study_of(config.sweep, [job.overrides for job, _ in found])
    from runner.experiment.check import check  # imports torch

    checked = [check(job_config) for _, job_config in found]
    if _planned.is_only_planned:
        from runner.sweeps.forecast import show_sweep

        show_sweep(folder, [(job, done) for (job, _), done in zip(found, checked, strict=True)])
        raise SystemExit
    jobs = [job for job, _ in found]
    try:
        if sweep_name(_planned.typed) is None:
            folder = new_folder(folder.parent, folder.name)
            jobs = _moved(config, jobs, folder)
        folder.mkdir(parents=True, exist_ok=True)
        _make_way(folder / OF_HYDRA)
        with hold(folder, wait_seconds=PATIENCE_SECONDS):
            write_sweep(folder, config.sweep, {job.name: job.overrides for job in jobs}, _planned.typed)
    except Taken as error:
        raise SettingError(f"{NAME}={folder.name}: {error} Wait for it, or choose another name.") from None
    except OSError as error:
        raise cannot_use(folder, error) from None
    _planned.folder, _planned.jobs = folder, jobs
    _planned.retry_failed = found[0][1].sweep.retry_failed
    _planned.stop = folder / f".stop-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


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


def _moved(config: DictConfig, jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs in a folder of another name, of which the configuration that Hydra runs them with is told."""
    if config.sweep.name == folder.name:
        return list(jobs)

    def renamed(words: Sequence[str]) -> list[str]:
        return [f"{NAME}={folder.name}" if key_of(word) == NAME else word for word in words]

    with flag_override(config, ["readonly", "struct"], False):
        config.sweep.name = folder.name
        config.hydra.overrides.task = renamed(_task_words(config))
    return [replace(job, folder=folder, overrides=tuple(renamed(job.overrides))) for job in jobs]


def stop_watching(*, at_once: bool = False) -> bool:
    """End the watch over a launcher, if there is one; whether a signal came to it.

    `at_once` if the launcher's processes may still be at work, or begin: these are to find that they should stop.
    """
    global _watch
    if _watch is None:
        return False
    watch, _watch = _watch, None
    was_stopped = watch.finish()
    if not at_once:
        watch.stop.unlink(missing_ok=True)
    return was_stopped
