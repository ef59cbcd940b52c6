"""The options of the configuration groups: each is one YAML file, which holds its settings with their defaults.

Its `_target_`, Hydra's own convention, names the class or function that makes it of its settings. `_kind_`, if it has
one, lists what it is, for the rules of runner.config.compatibility; `_ranges_` has the ranges of its settings beside
those in runner.config.limits. These two are no settings.
A setting has the type of its range, if it has one, else that of its default. So a new option needs no line but in its
own file. Null is allowed where it is the default. Where it is so without a range, our own options take text, and those
from outside anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from runner.config.ranges import Limit, OrNull, parse_range
from runner.config.text import SettingError, did_you_mean, to_override

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

SINGLE_GROUPS = ("model", "optimizer", "schedule", "dataset")  # of each of these one option is chosen
METHOD_GROUPS = ("norm", "regularization")
LIST_GROUPS = (*METHOD_GROUPS, "probe")  # of these several options may be chosen
OPEN_GROUPS = ("sweep", "experiment", "case")  # of these no option need be chosen


TARGET, KIND, RANGES = "_target_", "_kind_", "_ranges_"
NOT_SETTINGS = (KIND, RANGES)
KINDS = ("classification", "segmentation", "normalization", "no_batch_statistics", "clip", "mixes_labels")
OPTION_NAME = r"\w[\w-]{0,63}"  # it becomes a part of file names


@dataclass(frozen=True)
class Option:
    """What an option's YAML file says."""

    settings: dict[str, Any]  # with their defaults, `_target_` among them; of a method and a probe those below its name
    kinds: tuple[str, ...]
    ranges: dict[str, Limit]
    written: dict[str, Any]  # `_kind_` and `_ranges_` as they stand in the file

    @property
    def is_own(self) -> bool:
        """Whether this package makes it."""
        return self.settings[TARGET].startswith("runner.")


def option_file(group: str, name: str, conf_folders: Iterable[Path] = (CONF,)) -> Path | None:
    """The YAML file of an option in the first folder that has one."""
    files = (folder / group / f"{name}.yaml" for folder in conf_folders)
    return next((file for file in files if file.is_file()), None) if re.fullmatch(OPTION_NAME, name) else None


def option_label(settings: Mapping[str, Any]) -> str:
    """The name of a model or a data set in a word, as resnet50, timm-resnet50d or torchvision-SVHN."""
    return "-".join(str(settings[key]) for key in ("name", "architecture", "class_name") if key in settings)


def read_option(group: str, name: str, file: Path) -> Option:
    """The option in `file`, which is read once. Raises a SettingError that says what is wrong with it."""
    return _read_option(group, name, file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1000)
def _read_option(group: str, name: str, file: Path, _modified: int) -> Option:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        line = f", line {error.problem_mark.line + 1}" if isinstance(error, MarkedYAMLError) else ""
        raise SettingError(f"{file}{line}: this is not YAML ({getattr(error, 'problem', error)}).") from None
    return _option_of(content, group, name, file)


def _option_of(content: Any, group: str, name: str, file: Path) -> Option:
    if group in LIST_GROUPS:
        content = content.get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(content.get(TARGET), str):
        node = f"a node {name} with " if group in LIST_GROUPS else ""
        raise SettingError(f"{file}: it must hold {node}{TARGET}: MODULE.NAME, the class or function that makes it.")
    settings = {str(key): value for key, value in content.items() if key not in NOT_SETTINGS}
    written = {key: content[key] for key in NOT_SETTINGS if key in content}
    kinds, rows = written.get(KIND, []), written.get(RANGES, {})
    if not isinstance(kinds, list) or not {*map(str, kinds)} <= {*KINDS}:
        raise SettingError(f"{file}: {KIND}={to_override(kinds)}: it must be a list of {', '.join(KINDS)}.")
    if not isinstance(rows, dict):
        raise SettingError(f"{file}: {RANGES}={to_override(rows)}: it must be a mapping, as in {{clip: '> 0'}}.")
    ranges = {}
    for key, row in rows.items():
        if key not in settings:
            raise SettingError(f"{file}: {RANGES}.{key}: there is no such setting. {did_you_mean(str(key), settings)}")
        try:
            limit = parse_range(row)
        except ValueError as error:
            raise SettingError(f"{file}: {RANGES}.{key}={to_override(row)}: {error}.") from None
        ranges[key] = OrNull(limit) if settings[key] is None else limit
    return Option(settings, tuple(kinds), ranges, written)


def options_of_kind(group: str, kind: str, conf_folders: Iterable[Path] = (CONF,)) -> list[str]:
    """The options of a group that are of a kind."""
    files = [file for folder in conf_folders for file in sorted((folder / group).glob("*.yaml"))]
    return [file.stem for file in files if kind in read_option(group, file.stem, file).kinds]


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
    settings = _option_of(settings[package] if package else settings, group, name, file).settings
    if group in SINGLE_GROUPS and settings.get("name") != name:
        raise SettingError(f"{file}: it must hold name: {name}, as the file is called.")
    if group == "optimizer" and "lr" not in settings:
        raise SettingError(f"{file}: it must hold lr, the learning rate.")


def settings_type(name: str, option: Option, ranges: Mapping[str, Limit]) -> type:
    """The dataclass of an option's settings, by which OmegaConf checks their types."""
    kinds = []
    for key, default in option.settings.items():
        kind = ranges[key].kind if key in ranges else _kind_of(default, is_own=option.is_own)
        kinds.append((key, Optional[kind] if default is None else kind))
    return make_dataclass(name, kinds)


def _kind_of(default: Any, *, is_own: bool) -> Any:
    if default is None:
        return str if is_own else Any
    if isinstance(default, Sequence) and default and not isinstance(default, str):
        kinds = {type(entry) for entry in default}
        if kinds <= {int, float}:
            return list[float if float in kinds else int]
    return type(default)
