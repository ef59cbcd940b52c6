"""The check of a configuration: types, ranges, and the rules between fields. Needs no torch.

`validate` takes what Hydra composed and returns it typed, or raises a `SettingError` whose message names the key,
the value and the remedy. An option's node is typed by its own YAML file (runner.config.options).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from runner.config import limits
from runner.config.compatibility import check_combinations, choose_portions
from runner.config.extensions import extensions_folder
from runner.config.options import (
    CONF,
    KIND,
    METHOD_GROUPS,
    NOT_SETTINGS,
    OPEN_GROUPS,
    OPTION_NAME,
    SINGLE_GROUPS,
    TARGET,
    option_file,
    read_option,
    settings_type,
)
from runner.config.ranges import Limit
from runner.config.schema import TOP_LEVEL, Root, Study, Sweep, Values
from runner.config.secrets import check_no_secrets
from runner.config.settings import Settings
from runner.config.targets import OWN_PACKAGE, check_targets, package_of
from runner.config.text import SettingError, did_you_mean, to_override
from runner.config.typed import check_entries, check_study, resolved, typed_node


@dataclass(frozen=True)
class Written:
    """A node and how it is written: 1, 1.0 and true are equal, and three settings."""

    text: str
    node: Any = field(compare=False)


def method_nodes(config: Mapping) -> dict[str, Any]:
    """The settings of each selected method by its option's name."""
    return {key: config[key] for key in config if key not in TOP_LEVEL}


def check_folder_name(key: str, name: str | None) -> None:
    """Raise a SettingError if the setting `key` names a folder that cannot be one."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._,=+-]{0,119}", name):
        raise SettingError(f"{key}={name}: it names a folder; use up to 120 letters, digits and . _ - , = +.")


def one_option_each(choices: Mapping[str, object]) -> None:
    """Raise a SettingError if a list was chosen of a group that takes one option; Hydra would merge the options.

    `choices` are `hydra.runtime.choices`, which lack a group of which a list was chosen.
    """
    for group in (*SINGLE_GROUPS, *OPEN_GROUPS):
        if group not in choices:
            raise SettingError(f"{group}=[...]: this group takes one option, not a list; add -m for a sweep.")


def validate(config: DictConfig, conf_folders: Sequence[Path] = (CONF,)) -> Settings:
    """The settings of a composed configuration, every type and range checked. Raises SettingError.

    The jobs of a sweep share most nodes: each is given its types once, and is one object in the settings of all.
    """
    settings = resolved(config)
    check_no_secrets(settings)
    paths = settings.get("paths")
    keys = ("allowed_packages", "extensions")
    packages, extensions = (paths.get(key) if isinstance(paths, dict) else None for key in keys)
    packages = tuple(map(str, packages)) if isinstance(packages, list) else ()
    check_targets(settings, packages)
    if isinstance(extensions, str):
        conf_folders = [*conf_folders, extensions_folder(extensions)]
    if isinstance(settings.get("sweep"), dict) and "claims" in settings["sweep"]:  # else it was left out before
        node = typed_node("sweep", Study, settings["sweep"])
        check_study(settings["sweep"])
        settings["sweep"] = {key: node[key] for key in get_type_hints(Sweep)}
    for key in TOP_LEVEL:
        if key not in settings:
            raise SettingError(f"{key}: this setting is missing; it needs a value.")
    typed: dict[str, Any] = {**typed_node("", Values, {key: settings[key] for key in get_type_hints(Values)})}
    for key, kind in get_type_hints(Root).items():
        if key in SINGLE_GROUPS:
            typed[key] = _typed_option(key, settings[key], conf_folders, packages)
        elif is_dataclass(kind):
            typed[key] = _typed_root_node(key, kind, Written(repr(settings[key]), settings[key]))
    for key, node in method_nodes(settings).items():
        typed[key] = _typed_settings(_method_group(key, node, conf_folders), key, node, conf_folders, packages)
    typed["probe"] = {
        name: _typed_probe(name, node, conf_folders, packages) for name, node in settings["probe"].items()
    }
    _check_limits("", {key: typed[key] for key in limits.LIMITS[""]}, limits.LIMITS[""])
    return _check_rules(Settings({key: typed[key] for key in (*TOP_LEVEL, *method_nodes(settings))}), conf_folders)


def with_defaults(config: DictConfig, conf_folders: Sequence[Path] = (CONF,)) -> DictConfig:
    """The configuration of a run folder with the settings that are newer than the run, as they are by default.

    What builds an option is named as today: it may have had another name, or none, when the run began.
    """
    defaults = OmegaConf.masked_copy(OmegaConf.load(CONF / "config.yaml"), list(TOP_LEVEL))
    nodes = [(group, group, str(OmegaConf.select(config, f"{group}.name"))) for group in SINGLE_GROUPS]
    nodes += [(name, group, name) for name in method_nodes(config) for group in METHOD_GROUPS]
    nodes += [(f"probe.{name}", "probe", name) for name in config.get("probe", {})]
    for key, group, name in nodes:
        if (file := option_file(group, name, conf_folders)) is not None:
            settings = read_option(group, name, file).settings
            OmegaConf.update(defaults, key, settings, force_add=True)
            if str(OmegaConf.select(config, f"{key}.{TARGET}", default=f"{OWN_PACKAGE}.")).startswith(
                f"{OWN_PACKAGE}."
            ):
                OmegaConf.update(config, f"{key}.{TARGET}", settings[TARGET], force_add=True)
    return OmegaConf.merge(defaults, config)


def _typed_option(group: str, node: Any, conf_folders: Sequence[Path], packages: tuple[str, ...]) -> Settings:
    """The settings of the option that a group has."""
    name = str(node.get("name") if isinstance(node, dict) else None)
    if option_file(group, name, conf_folders) is None:
        raise SettingError(f"{group}.name={name}: choose an option of the group instead, as in {group}=OPTION.")
    return _typed_settings(group, name, node, conf_folders, packages)


def _typed_probe(name: str, node: Any, conf_folders: Sequence[Path], packages: tuple[str, ...]) -> Settings:
    """The settings of a chosen probe."""
    if option_file("probe", name, conf_folders) is None:
        probes = {file.stem for folder in conf_folders for file in (folder / "probe").glob("*.yaml")}
        raise SettingError(f"probe.{name}: there is no such probe. {did_you_mean(name, probes)}".rstrip())
    return _typed_settings("probe", name, node, conf_folders, packages)


def _typed_settings(
    group: str, name: str, node: Any, conf_folders: Sequence[Path], packages: tuple[str, ...]
) -> Settings:
    """The settings of an option with the types and in the ranges that its YAML file gives them."""
    file = option_file(group, name, conf_folders)
    return _typed_by_file(group, name, file, file.stat().st_mtime_ns, packages, Written(repr(node), node))


@lru_cache(maxsize=10_000)
def _typed_by_file(
    group: str, name: str, file: Path, _modified: int, packages: tuple[str, ...], written: Written
) -> Settings:
    prefix = {"probe": f"probe.{name}"}.get(group, name if group in METHOD_GROUPS else group)
    option, node = read_option(group, name, file), written.node
    defaults, ranges = option.settings, limits.ranges_of(group, option)
    if isinstance(node, dict):
        for key in {*NOT_SETTINGS} & node.keys():
            if node[key] != option.written.get(key):
                raise SettingError(f"{prefix}.{key}={to_override(node[key])}: this is no setting; leave it out.")
        node = {key: value for key, value in node.items() if key not in NOT_SETTINGS}
    typed = typed_node(prefix, settings_type(name, option, ranges), node)
    if typed[TARGET] != defaults[TARGET] and package_of(typed[TARGET], packages) is None:
        raise SettingError(f"{prefix}.{TARGET}={typed[TARGET]}: {name} is built by {defaults[TARGET]}; leave it out.")
    plain = typed.plain()
    for key, default in defaults.items():
        if key not in ranges:
            check_entries(f"{prefix}.{key}", plain[key], default)
    given = {key: value for key, value in plain.items() if value is not None or defaults[key] is not None}
    _check_limits(prefix, given, ranges)
    return typed


@lru_cache(maxsize=10_000)
def _typed_root_node(name: str, kind: type, written: Written) -> Settings:
    """The settings of a node that belongs to no option."""
    typed = typed_node(name, kind, written.node)
    if name in limits.LIMITS:
        _check_limits(
            name, {key: value for key, value in typed.plain().items() if value is not None}, limits.LIMITS[name]
        )
    return typed


def _method_group(name: str, node: Any, conf_folders: Sequence[Path]) -> str:
    """The group of the method that `node` holds the settings of; raises SettingError if there can be none."""
    if not re.fullmatch(OPTION_NAME, name):
        raise SettingError(f"{name}: a method's name has up to 64 letters, digits, _ and -.")
    if name in METHOD_GROUPS:
        raise SettingError(f"{name}: the first line of an option's YAML file must be # @package _global_.")
    group = next((group for group in METHOD_GROUPS if option_file(group, name, conf_folders)), None)
    if group is None:
        value = to_override(node) if not isinstance(node, dict) else "..."
        raise SettingError(f"{name}={value}: there is no such setting. {did_you_mean(name, TOP_LEVEL)}".rstrip())
    read_option(group, name, option_file(group, name, conf_folders))  # refuses a wrong file
    if isinstance(node, dict) and TARGET not in node:
        key, value = next(iter(node.items()), ("...", "..."))
        raise SettingError(f"{name}.{key}={to_override(value)}: {name} is not part of this run; add {group}={name}.")
    return group


def _check_limits(node: str, settings: Mapping, ranges: Mapping[str, Limit]) -> None:
    try:
        limits.check(node, ranges, **{str(key): value for key, value in settings.items()})
    except ValueError as error:
        raise SettingError(str(error)) from None


def _check_rules(config: Settings, conf_folders: Sequence[Path]) -> Settings:
    """The rules between fields; returns the settings with what `portion: auto` of a method means here."""
    train = config.train
    if train.global_batch_size % train.accumulation_steps:
        raise SettingError(
            f"train.global_batch_size={train.global_batch_size}: train.accumulation_steps={train.accumulation_steps} "
            "micro-batches must divide it."
        )
    if train.global_batch_size % (train.accumulation_steps * train.num_devices):
        raise SettingError(
            f"train.global_batch_size={train.global_batch_size}: train.num_devices={train.num_devices} times "
            f"train.accumulation_steps={train.accumulation_steps} must divide it."
        )
    if train.auto_resume and config.name is None and config.resume is None and config.sweep.name is None:
        raise SettingError("train.auto_resume=true: the run needs a name to be found again by; add name=NAME.")
    config = _check_methods(config, conf_folders)
    if config.optimizer.get("nesterov") and config.optimizer.momentum == 0:
        raise SettingError("optimizer.momentum=0.0: Nesterov momentum needs more; set optimizer.nesterov=false.")
    check_folder_name("name", config.name)
    check_folder_name("sweep.name", config.sweep.name)
    return config


def check_task(config: Settings, task: str) -> None:
    """Raise a SettingError if the model, the loss or a method does not go with the data set's task, for a data set of
    which its files alone tell that.
    """
    folders = [CONF, extensions_folder(config.paths.extensions)] if config.paths.extensions else [CONF]
    file = option_file("dataset", config.dataset.name, folders)
    if file is not None and {"classification", "segmentation"} <= {*read_option("dataset", file.stem, file).kinds}:
        _check_methods(config, folders, task)


def _check_methods(config: Settings, conf_folders: Sequence[Path], task: str | None = None) -> Settings:
    """The rules between methods; `portion: auto` gives way to what it means here."""

    def with_kinds(name: str, node: Settings, *groups: str) -> dict[str, Any]:
        files = ((group, file) for group in groups if (file := option_file(group, name, conf_folders)))
        return {**node.plain(), KIND: next((read_option(group, name, file).kinds for group, file in files), ())}

    methods = {name: with_kinds(name, node, *METHOD_GROUPS) for name, node in method_nodes(config).items()}
    nodes = {group: with_kinds(config[group].name, config[group], group) for group in ("model", "dataset")}
    if task is not None:
        nodes["dataset"][KIND] = (task,)
    try:
        check_combinations(methods, train=config.train.plain(), optimizer=config.optimizer.plain(), **nodes)
    except ValueError as error:
        raise SettingError(str(error)) from None
    return config.changed({f"{name}.portion": portion for name, portion in choose_portions(methods).items()})
