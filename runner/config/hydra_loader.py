"""What Hydra may instantiate: every configuration is checked as Hydra composes it, before anything else sees it.

Hydra instantiates callbacks, launcher and sweeper, and sets up logging, before the program's first line. All that it
composes comes from one place, its configuration loader: a run, each job of a sweep, also in the processes of a
launcher, `--cfg` and `--help`. `CheckedLoader` takes that place. So what is checked is what is used, and nothing is
composed twice. Three rules:

- a file from elsewhere (a search path, `--config-dir`, `--config-path`) sets of Hydra's settings callbacks and the
  plain settings of a launcher alone; not, say, `hydra.job.env_set`, by which another program would be started;
- each `_target_` below `hydra` must be Hydra's own launcher or sweeper, a launcher that README names, or a callback of
  this package or of one that the command line allows; logging may name the standard library's handlers alone;
- `paths.extensions` and `paths.allowed_packages` hold what was typed, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import hydra._internal.hydra as application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from runner.config.extensions import import_class, use_folder
from runner.config.grammar import parsed
from runner.config.options import CONF, LIST_GROUPS, NOT_SETTINGS, SINGLE_GROUPS, TARGET, check_option
from runner.config.plugins import LAUNCHERS
from runner.config.secrets import check_no_secret_words, check_no_secrets, secret_values
from runner.config.targets import OWN_PACKAGE, check_target, package_of
from runner.config.text import SettingError, to_override
from runner.config.trust import EXTENSIONS, PACKAGES, Allowed, check_places, leaves, refuse_resolvers

PLUGINS = (
    *("hydra._internal.core_plugins.basic_launcher", "hydra._internal.core_plugins.basic_sweeper"),
    *(f"hydra_plugins.hydra_{name}_launcher" for name in ("joblib", "submitit", "ray")),
)
SWEEP_CALLBACK = "runner.sweeps.sweep.SweepCallback"
OWN_FOLDERS = ("job.chdir", "output_subdir", "run.dir", "sweep.dir", "sweep.subdir")  # as conf/config.yaml has them
FOLDERS = tuple(dict.fromkeys(key.partition(".")[0] for key in OWN_FOLDERS))
LOGGING = ("hydra_logging", "job_logging")
USED = ("callbacks", "launcher", "sweeper", *LOGGING)  # by Hydra, to instantiate what they name
HANDLERS = tuple(f"logging.{name}" for name in ("StreamHandler", "FileHandler", "NullHandler", "Formatter"))
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
TRUSTED_SOURCES = ("pkg://hydra.conf", "structured://")  # Hydra's own files, and what installed plugins register
REQUEST_WORDS = ("account", "constraint", "exclude", "gres", "mem_per_cpu", "mem_per_gpu", "partition", "qos")
# of a job's request to Slurm; a launcher's other texts are commands, paths and addresses


@contextmanager
def checked(words: Sequence[str], *, typed: Sequence[str], sweep: Any = None) -> Iterator[None]:
    """Check what Hydra composes in this context; `words` go to Hydra, and `typed` are those that the user typed.

    `sweep` is what the loader carries to the callback of a sweep, which Hydra makes from its name alone.

    Raises SettingError at once for a word that holds a secret, and for Hydra's option to run a pickled job.
    """
    check_no_secret_words([*typed, *words])
    parser = get_args_parser()
    parser.error = _refuse_flag
    if parser.parse_args(list(words)).experimental_rerun is not None:
        raise SettingError("--experimental-rerun: a pickled job may run any code; go on with a run by resume=FOLDER.")
    before = application.ConfigLoaderImpl
    application.ConfigLoaderImpl = partial(CheckedLoader, allowed=Allowed.typed(typed), sweep=sweep)
    try:
        yield
    finally:
        application.ConfigLoaderImpl = before


def _refuse_flag(message: str) -> NoReturn:
    """In the place of the parser's own way, which prints all that it knows."""
    raise SettingError(f"the command line: {message}. See python -m runner --hydra-help.")


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's configuration loader, which gives out what the three rules allow and raises SettingError otherwise."""

    def __init__(self, config_search_path: Any, allowed: Allowed, sweep: Any = None) -> None:
        super().__init__(config_search_path)
        self.allowed = allowed
        self.sweep = sweep
        self._composed: dict[tuple[str, ...], DictConfig] = {}  # the last one, by the options of a sweep's job

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: Any
    ) -> DictConfig:
        """Compose, and check what came out.

        Hydra asks first for `hydra.mode` alone and composes everything for it, errors unseen; only a word can set it.
        """
        if options.get("validate_sweep_overrides") is False and not any("hydra.mode" in word for word in overrides):
            return OmegaConf.create({"hydra": {"mode": None}})
        composed = super().load_configuration(config_name, overrides, run_mode, **options)
        check_composed(composed, self.allowed)
        target = OmegaConf.select(composed, f"hydra.callbacks.sweep.{TARGET}")
        if run_mode == RunMode.MULTIRUN and config_name is not None and target != SWEEP_CALLBACK:
            raise SettingError(f"hydra.callbacks.sweep.{TARGET}={target}: leave it as it is, {SWEEP_CALLBACK}.")
        if config_name is not None:
            check_folders(composed.hydra)
        return composed

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of a sweep's job. As soon as the sweep is planned that is Hydra's part of it alone.

        The job's own settings were validated when the sweep was planned, and stand in the plan.
        """
        is_planned = self.sweep is not None and bool(self.sweep.jobs)
        config = deepcopy(master_config) if is_planned else self._job_config(master_config, sweep_overrides)
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.overrides.task = list(sweep_overrides)
        return config

    def _job_config(self, master_config: DictConfig, words: list[str]) -> DictConfig:
        """A job as Hydra composes it: its options once for all jobs that share them, then its values."""
        sources = master_config.hydra.runtime.config_sources
        folders = [Path(source.path) for source in sources if source.schema == "file"]
        values = [override for word in words if (override := parsed(word)) and _sets_a_value(override, folders)]
        written = {override.input_line for override in values}
        choices = tuple(word for word in words if word not in written)
        if choices not in self._composed:
            self._composed.clear()  # its options differ from those of the job before, as a rule from all others
            self._composed[choices] = super().load_sweep_config(master_config, list(choices))
        config = deepcopy(self._composed[choices])
        self._apply_overrides_to_config(values, config)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        check_composed(config, self.allowed)
        return config

    def _process_config_searchpath(self, config_name: str | None, parsed_overrides: Any, repo: Any) -> None:
        primary = repo.load_config(config_path=config_name) if config_name is not None else None
        if primary is not None:
            check_file(primary, config_name)  # its search path would be imported from before it is loaded
        super()._process_config_searchpath(config_name, parsed_overrides, repo)

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        check_file(loaded, str(default.config_path), default.package or "")
        if str(default.config_path).partition("/")[0] in (*SINGLE_GROUPS, *LIST_GROUPS):
            _drop(loaded.config, NOT_SETTINGS)
        return loaded


def _drop(node: DictConfig, keys: Sequence[str]) -> None:
    """Remove the keys from a node and from those below it."""
    for key in list(node):
        if key in keys:
            del node[key]
        elif isinstance(node._get_node(key), DictConfig):
            _drop(node[key], keys)


def _sets_a_value(override: Override, conf_folders: Sequence[Path]) -> bool:
    """Whether an override sets a value, and neither chooses an option nor deletes anything."""
    is_group = any((folder / override.key_or_group).is_dir() for folder in conf_folders)
    return not (is_group or override.is_delete() or override.is_add() or override.package is not None)


def check_file(loaded: ConfigResult, option: str, package: str = "") -> None:
    """Raise a SettingError if a file from elsewhere sets what must be typed, or is a faulty option of a group.

    `option` is its name in its source; Hydra has put its settings into the node `package` already.
    """
    file = Path(loaded.path.removeprefix("file://"), f"{option.removesuffix('.yaml')}.yaml").resolve()
    is_own = loaded.path.startswith("file://") and file.is_relative_to(CONF.resolve())
    if loaded.path in TRUSTED_SOURCES or is_own:
        return
    settings = OmegaConf.to_container(loaded.config, resolve=False)
    if isinstance(settings, dict):
        plain = {key: value for key, value in settings.items() if key != "hydra"}
        refuse_resolvers(plain, file)
        group, _, name = option.removesuffix(".yaml").partition("/")
        check_option(plain, group, name, file, package)
        check_places(plain, file)
    for key, value in leaves(settings.get("hydra", {}) if isinstance(settings, dict) else {}):
        if not (_is_harmless(key, value) or own_settings().get(key, ...) == value):
            setting = f"hydra{key and '.'}{key}={' '.join(to_override(value).split())}"
            raise SettingError(
                f"{file}: it sets {setting}. A file from elsewhere may not; if you trust it, type it yourself."
            )


def check_composed(composed: DictConfig, allowed: Allowed) -> None:
    """Raise a SettingError if what Hydra is about to use names code that is not allowed, or holds a secret."""
    has_secrets = bool(secret_values())
    for place, key, value in _resolved(composed.hydra, "hydra"):
        _, node, *_ = place.split(".")
        if key == TARGET:
            _check_hydra_target(place, str(value), allowed)
        elif node in LOGGING and not _is_plain_logging(key, value):
            raise SettingError(f"{place}={value}: logging may name {', '.join(HANDLERS)} alone.")
        if node == "overrides":
            check_no_secret_words([str(value).lstrip("+")])
        elif has_secrets:
            check_no_secrets(value, place)
    methods, packages = (_selected(composed, key) for key in (EXTENSIONS, PACKAGES))
    allowed.check(methods, packages or ())


def check_folders(hydra: DictConfig) -> None:
    """Raise a SettingError if Hydra is to make folders or logs of its own: runs make theirs, once they are checked."""
    settings = OmegaConf.to_container(hydra, resolve=False)
    for node in LOGGING:
        if "logging.FileHandler" in dict(leaves(settings[node] or {})).values():
            raise SettingError(f"hydra.{node}: leave out the handler that logs into a file; write hydra/{node}=none.")
    for key, value in leaves({key: settings[key] for key in FOLDERS}):
        if key in OWN_FOLDERS and value != own_settings()[key]:
            raise SettingError(
                f"hydra.{key}={to_override(value)}: leave it as it is. Runs lie in OUTPUTS/runs/NAME, jobs in "
                "OUTPUTS/sweeps/NAME: set paths.outputs, name or sweep.name."
            )


def _check_hydra_target(place: str, target: str, allowed: Allowed) -> None:
    if place in (f"hydra.launcher.{TARGET}", f"hydra.sweeper.{TARGET}"):
        if package_of(target, PLUGINS) is None:  # Hydra itself takes no class but that of a plugin
            raise SettingError(f"{place}={target}: choose hydra/launcher={', '.join(LAUNCHERS)}, hydra/sweeper=basic.")
        return
    check_target(place, target, (OWN_PACKAGE, *allowed.packages), what="what Hydra instantiates")
    try:
        use_folder(allowed.extensions)
        found = import_class(target)
        if package_of(target, allowed.packages) is None and not issubclass(found, Callback):
            raise ValueError("this is no callback of Hydra's")
    except ValueError as error:
        raise SettingError(f"{place}={target}: {error}.") from None


def _is_harmless(key: str, value: object) -> bool:
    """Whether a file from elsewhere may hold `hydra.<key>`; every `_target_` is checked again when all is composed."""
    node, _, rest = key.partition(".")
    if node == "callbacks":
        return bool(rest)
    if node == "sweeper":
        return rest in (TARGET, "max_batch_size")
    if node != "launcher" or not rest:
        return False
    if rest == TARGET or value is None or isinstance(value, (bool, int, float)):
        return True
    return rest in REQUEST_WORDS and re.fullmatch(r"[\w.,:@+-]{1,64}", str(value)) is not None


def _is_plain_logging(key: str, value: object) -> bool:
    if key == "class":
        return value in HANDLERS
    return key != "()" and (not str(value).startswith(("ext://", "cfg://")) or value in STREAMS)


@lru_cache(maxsize=1)
def own_settings() -> dict[str, object]:
    """What conf/config.yaml sets of Hydra, which a copy of it elsewhere may say too."""
    return dict(leaves(OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").hydra, resolve=False)))


def _resolved(node: DictConfig | ListConfig, place: str, above: tuple[int, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    """Every value below `node` with its place and its key, interpolations followed.

    One that leads nowhere yet (`hydra.runtime.output_dir`) is left out if it is part of a longer text, which can become
    nothing but text; by itself it might become anything, and in what Hydra instantiates it is a SettingError.
    """
    if id(node) in above:
        return
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        where = f"{place}.{key}"
        if OmegaConf.is_missing(node, key):
            continue
        text = str(OmegaConf.to_container(node, resolve=False)[key]) if OmegaConf.is_interpolation(node, key) else ""
        try:
            value = node[key]
            if key == TARGET and text and value is None:
                raise SettingError(f"{where}={text}: this leads nowhere.")
        except OmegaConfBaseException:
            if where.split(".")[1] in USED and (key == TARGET or (text.startswith("${") and text.endswith("}"))):
                raise SettingError(f"{where}={text}: this leads nowhere.") from None
            continue
        if isinstance(value, (DictConfig, ListConfig)):
            yield from _resolved(value, where, (*above, id(node)))
        else:
            yield where, str(key), value


def _selected(composed: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(composed, key)
    except OmegaConfBaseException:
        raise SettingError(f"{key}: this leads nowhere; set it to a value.") from None
