"""The options of the configuration groups: each is one YAML file, which holds its settings with their defaults.

Its `_target_`, Hydra's own convention, names the class or function that makes it of its settings. `_kind_`, if it has
one, lists what it is, for the rules of runner.config.compatibility: neither is a setting.
A setting has the type of its range in runner.config.limits, if it has one, else that of its default. So a new option
needs no line but in its own file. Null is allowed where it is the default. Where it is so without a range, our own
options take text, and those from outside anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from runner.config.limits import ranges_of
from runner.config.text import SettingError

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

SINGLE_GROUPS = ("model", "optimizer", "schedule", "dataset")  # of each of these one option is chosen
METHOD_GROUPS = ("norm", "regularization")
LIST_GROUPS = (*METHOD_GROUPS, "probe")  # of these several options may be chosen
OPEN_GROUPS = ("sweep", "experiment", "case")  # of these no option need be chosen


TARGET, KIND = "_target_", "_kind_"
OPTION_NAME = r"\w[\w-]{0,63}"  # it becomes a part of file names


def option_file(group: str, name: str, conf_folders: Iterable[Path] = (CONF,)) -> Path | None:
    """The YAML file of an option in the first folder that has one."""
    files = (folder / group / f"{name}.yaml" for folder in conf_folders)
    return next((file for file in files if file.is_file()), None) if re.fullmatch(OPTION_NAME, name) else None


def option_settings(group: str, name: str, file: Path) -> dict[str, Any]:
    """The settings of the option in `file` with their defaults; of a method and a probe those below its name.

    Each file is read once. Raises a SettingError that says what is wrong with it.
    """
    return dict(_read_settings(group, name, file, file.stat().st_mtime_ns))


@lru_cache(maxsize=1000)
def _read_settings(group: str, name: str, file: Path, _modified: int) -> dict[str, Any]:
    try:
        settings = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        line = f", line {error.problem_mark.line + 1}" if isinstance(error, MarkedYAMLError) else ""
        raise SettingError(f"{file}{line}: this is not YAML ({getattr(error, 'problem', error)}).") from None
    return {key: value for key, value in _settings_in(settings, group, name, file).items() if key != KIND}


def option_kinds(group: str, name: str, file: Path) -> tuple[str, ...]:
    """What an option is, of `segmentation`, `normalization`, `no_batch_statistics`, `clip` and `mixes_labels`."""
    return _kinds(group, name, file, file.stat().st_mtime_ns)


def options_of_kind(group: str, kind: str, conf_folders: Iterable[Path] = (CONF,)) -> list[str]:
    """The options of a group that are of a kind."""
    files = [file for folder in conf_folders for file in sorted((folder / group).glob("*.yaml"))]
    return [file.stem for file in files if kind in option_kinds(group, file.stem, file)]


@lru_cache(maxsize=1000)
def _kinds(group: str, name: str, file: Path, _modified: int) -> tuple[str, ...]:
    return tuple(_settings_in(OmegaConf.to_container(OmegaConf.load(file)), group, name, file).get(KIND, ()))


def _settings_in(settings: Any, group: str, name: str, file: Path) -> dict[str, Any]:
    if group in LIST_GROUPS:
        settings = settings.get(name) if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get(TARGET), str):
        node = f"a node {name} with " if group in LIST_GROUPS else ""
        raise SettingError(f"{file}: it must hold {node}{TARGET}: MODULE.NAME, the class or function that makes it.")
    return {str(key): value for key, value in settings.items()}


def check_option(settings: Mapping, group: str, name: str, file: Path, package: str) -> None:
    """Raise a SettingError that says what is wrong with a group's option from elsewhere.

    `settings` is the content of `file` in the node `package`, into which Hydra has put it.
    """
    expected = "" if group in METHOD_GROUPS else group
    if group not in (*SINGLE_GROUPS, *LIST_GROUPS):
        return
    if package != expected:
        header = "must be # @package _global_" if group in METHOD_GROUPS else "must not be a line # @package"
        raise SettingError(f"{file}: the first line of an option's YAML file {header}.")
    settings = _settings_in(settings[package] if package else settings, group, name, file)
    if group in SINGLE_GROUPS and settings.get("name") != name:
        raise SettingError(f"{file}: it must hold name: {name}, as the file is called.")
    if group == "optimizer" and "lr" not in settings:
        raise SettingError(f"{file}: it must hold lr, the learning rate.")


def settings_type(group: str, name: str, defaults: dict[str, Any]) -> type:
    """The dataclass of an option's settings, by which OmegaConf checks their types."""
    ranges = ranges_of(group, name, own=is_own(defaults))
    kinds = []
    for key, default in defaults.items():
        kind = ranges[key].kind if key in ranges else _kind_of(default, defaults)
        kinds.append((key, Optional[kind] if default is None else kind))
    return make_dataclass(name, kinds)


def is_own(settings: Mapping[str, Any]) -> bool:
    """Whether an option is made by this package."""
    return str(settings[TARGET]).startswith("runner.")


def _kind_of(default: Any, defaults: dict[str, Any]) -> Any:
    if default is None:
        return str if is_own(defaults) else Any
    if isinstance(default, Sequence) and default and not isinstance(default, str):
        kinds = {type(entry) for entry in default}
        if kinds <= {int, float}:
            return list[float if float in kinds else int]
    return type(default)
