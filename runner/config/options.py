"""The options of the configuration groups: each is one YAML file, which holds its settings with their defaults.

A setting has the type of its range in runner.config.limits, if it has one, else that of its default. So a new option
needs no line but in its own file. Null is allowed where it is the default. Where it is so without a range, our own
options take text, and those from outside anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf

from runner.config.limits import ranges_of

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

SINGLE_GROUPS = ("model", "optimizer", "schedule", "dataset")  # of each of these one option is chosen
METHOD_GROUPS = ("norm", "regularization")
LIST_GROUPS = (*METHOD_GROUPS, "probe")  # of these several options may be chosen
OPEN_GROUPS = ("sweep", "experiment", "case")  # of these no option need be chosen


def option_file(group: str, name: str, conf_folders: Iterable[Path] = (CONF,)) -> Path | None:
    """The YAML file of an option in the first folder that has one."""
    return next((file for folder in conf_folders if (file := folder / group / f"{name}.yaml").is_file()), None)


def option_settings(group: str, name: str, file: Path) -> dict[str, Any]:
    """The settings of the option in `file` with their defaults; of a method and a probe those below its name."""
    settings = OmegaConf.to_container(OmegaConf.load(file))
    return {str(key): value for key, value in (settings[name] if group in LIST_GROUPS else settings).items()}


def settings_type(group: str, name: str, defaults: dict[str, Any]) -> type:
    """The dataclass of an option's settings, by which OmegaConf checks their types."""
    ranges = ranges_of(group, name)
    kinds = []
    for key, default in defaults.items():
        kind = ranges[key].kind if key in ranges else _kind_of(default, defaults)
        kinds.append((key, Optional[kind] if default is None else kind))
    return make_dataclass(name, kinds)


def _kind_of(default: Any, defaults: dict[str, Any]) -> Any:
    if default is None:
        return str if str(defaults.get("_target_")).startswith("runner.") else Any
    if isinstance(default, Sequence) and default and not isinstance(default, str):
        kinds = {type(entry) for entry in default}
        if kinds <= {int, float}:
            return list[float if float in kinds else int]
    return type(default)
