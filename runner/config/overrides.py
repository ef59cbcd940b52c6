"""What is done to the command line's overrides before Hydra composes them.

Hydra keeps a mapping closed, so that `agc.groups={layer4:0.02}` would be refused, and it takes `+norm=agc` and `~agc`
without a word and does something else than asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Sweep
from omegaconf import DictConfig, OmegaConf

from runner.config.diagnose import chosen_options, option_fault
from runner.config.extensions import search_folders
from runner.config.grammar import all_parsed, options_of, parsed
from runner.config.options import LIST_GROUPS, METHOD_GROUPS, SINGLE_GROUPS, option_file
from runner.config.text import SettingError
from runner.config.validation import check_folder_name

MOST_JOBS = 10_000  # of a sweep: each is composed and checked before the first begins
LONGEST_NAME = 200  # bytes of a key or an option, which are looked for as files


def prepare_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments with `++` before a setting whose default is a mapping, or an entry of it.

    Raises SettingError for an override that adds or moves an option, deletes a method, names an option that no file
    can have, or makes a sweep of a kind or a size that is none.
    """
    folders = search_folders(arguments)
    for override in all_parsed(arguments):
        _refuse_without_file(override, folders)
    _refuse_endless_sweep(arguments)
    chosen = chosen_options(arguments, folders)
    prepared = []
    for word in arguments:
        override = parsed(word)  # the message for one that is not comes when Hydra composes
        if override is not None:
            _refuse_amiss(override, arguments, folders)
            if _is_open(override, chosen, folders):
                word = f"++{word}"
        prepared.append(word)
    return prepared


def as_typed(words: Sequence[str]) -> list[str]:
    """Overrides without the `++` of `prepare_overrides`, as they are recorded and shown.

    >>> from runner.config.overrides import as_typed
    >>> as_typed(["norm=agc", "++agc.groups={layer4:0.02}"])
    ['norm=agc', 'agc.groups={layer4:0.02}']
    """
    return [word.removeprefix("++") for word in words]


def _refuse_without_file(override: Override, folders: Sequence[Path]) -> None:
    """Raise a SettingError for a key or an option that can be the name of no file."""
    key, word = override.key_or_group, override.input_line
    if len(os.fsencode(key)) > LONGEST_NAME:
        raise SettingError(f"{word}: there is no such setting. See python -m runner --cfg job.")
    if key == "sweep.name" and not override.is_sweep_override() and isinstance(override.value(), str):
        check_folder_name(key, None if "${" in override.value() else override.value())
    if override.is_delete() or not any((folder / key).is_dir() for folder in folders):
        return
    if isinstance(override.value(), list) and key not in LIST_GROUPS:
        return  # told by `_refuse_amiss`
    for option in options_of(override):
        is_name = isinstance(option, str) and len(os.fsencode(option)) <= LONGEST_NAME and "${" not in option
        if not is_name and not isinstance(option, (type(None), Sweep)):
            raise SettingError(f"{word}: {option_fault(key, override, folders, sweeping=True)}")
        if option is None and isinstance(override.value(), list):
            raise SettingError(f"{word}: a list of options has names alone; write an empty list: {key}=[].")


def _refuse_endless_sweep(arguments: Sequence[str]) -> None:
    """Raise a SettingError for a sweep of another kind than Hydra's sweeper has, or of more jobs than can be planned.

    Nothing is expanded for that: a range of 10^8 jobs would fill the memory.
    """
    jobs = 1
    for override in all_parsed(arguments):
        if not override.is_sweep_override():
            continue
        number, word = _number_of_values(override), override.input_line
        if number is None:
            raise SettingError(
                f"{word}: a sweep takes single values, not an interval; write {override.key_or_group}=VALUE,VALUE or "
                f"{override.key_or_group}=range(START,STOP,STEP)."
            )
        if not math.isfinite(number):
            raise SettingError(f"{word}: this range never ends; write range(START,STOP,STEP) with finite numbers.")
        jobs *= max(number, 1)
        if jobs > MOST_JOBS:
            raise SettingError(f"{word}: {jobs:,} jobs; a sweep has at most {MOST_JOBS:,}. Sweep fewer values.")


def _number_of_values(override: Override) -> float | None:
    """How many values a sweep has; None for one without single values."""
    value = override.value()
    if isinstance(value, RangeSweep):
        span, step = float(value.stop) - float(value.start), float(value.step)
        values = span / step if step else math.inf
        return math.ceil(values) if math.isfinite(values) else math.inf
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    return None if isinstance(value, IntervalSweep) else 1


def _refuse_amiss(override: Override, arguments: Sequence[str], folders: Sequence[Path]) -> None:
    key, word = override.key_or_group, override.input_line
    is_group = any((folder / key).is_dir() for folder in folders)
    if is_group and key not in LIST_GROUPS and isinstance(override.value(), list):
        raise SettingError(f"{word}: {key} takes one option, not a list; add -m for a sweep.")
    if is_group and (override.package is not None or override.is_add() or override.is_force_add()):
        options = [str(option) for option in options_of(override)]
        if key in LIST_GROUPS and override.package is None:
            others = chosen_options([other for other in arguments if other != word])[key]
            options = list(dict.fromkeys([*others, *options]))
        right = f"'{key}=[{','.join(options)}]'" if len(options) > 1 else f"{key}={','.join(options)}"
        raise SettingError(f"{word}: options of a group are chosen in one place; write {right}.")
    group = method_group(key, folders)
    if override.is_delete() and group is not None:
        others = [option for option in chosen_options(arguments)[group] if option != key]
        raise SettingError(f"{word}: a method is left out where it is chosen; write '{group}=[{','.join(others)}]'.")


def _is_open(override: Override, chosen: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> bool:
    """Whether it sets, and neither adds nor deletes, `sweep.names` or a mapping among a chosen option's settings."""
    node, _, rest = override.key_or_group.partition(".")
    if override.is_add() or override.is_force_add() or override.is_delete():
        return False
    if node == "sweep":
        return rest.partition(".")[0] == "names"
    if node in SINGLE_GROUPS:
        defaults = [OmegaConf.load(file) for option in chosen[node] if (file := option_file(node, option, folders))]
    else:
        group = method_group(node, folders)
        if group is None or node not in chosen[group]:
            return False
        defaults = [OmegaConf.load(option_file(group, node, folders)).get(node)]
    settings = [each.get(rest.partition(".")[0]) for each in defaults if rest and isinstance(each, DictConfig)]
    return any(isinstance(setting, DictConfig) for setting in settings)


def method_group(name: str, folders: Sequence[Path]) -> str | None:
    """The group of the method called `name`, or None if there is no such method."""
    return next((group for group in METHOD_GROUPS if option_file(group, name, folders)), None)
