"""From an override that Hydra cannot compose to a message with the key, the value and the remedy.

Hydra's own messages propose `+key=value`, which silently adds a setting that nothing reads; and they do not say
which of several overrides is at fault. This module looks at the overrides one by one instead.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError
from yaml import MarkedYAMLError

from runner.config.grammar import all_parsed, is_swept, options_of, parsed
from runner.config.options import CONF, LIST_GROUPS, METHOD_GROUPS, OPEN_GROUPS
from runner.config.plugins import plugin_fault
from runner.config.secrets import redact
from runner.config.text import SettingError, did_you_mean, first_line, one_line
from runner.config.typed import A_LIST, A_MAPPING, no_value
from runner.distributed.environment import is_first

WRONG_SETTING = 2  # the exit code
SECONDS_TO_TELL = 20
EXPERIMENT, CASE = "experiment", "case"  # the groups whose options are whole runs, and what a study varies in them


def diagnose(
    overrides: Sequence[str],
    error: Exception,
    conf_folders: Sequence[Path] = (CONF,),
    *,
    sweeping: bool = False,
    sweep: Sequence[str] = (),
) -> SettingError:
    """What is wrong with `overrides`, which Hydra refused with `error`.

    `sweeping` if -m allows several values; `sweep` are those of the whole sweep if `overrides` are one job's.
    """
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return SettingError(f"{mark.name}, line {mark.line + 1}: this is not YAML ({error.problem}).")
    for text in overrides:
        override = parsed(text)
        if override is None:
            remedy = "quote brackets and spaces: 'KEY=[A,B]'"
            remedy = "an interpolation has a name and a closing brace: '${KEY}'" if "${" in text else remedy
            return SettingError(f"{text}: this is not of the form KEY=VALUE; {remedy}.")
        fault = _fault(override, overrides, conf_folders, sweeping, sweep)
        if fault:
            return SettingError(f"{text.removeprefix('++')}: {fault}")
    cause = error.__cause__ or error
    reason = first_line(cause)
    interpolations = [text for text in overrides if "${" in text]
    if isinstance(cause, (InterpolationResolutionError, GrammarParseError)) and len(interpolations) == 1:
        return SettingError(no_value(interpolations[0].removeprefix("++"), reason))
    return SettingError(reason)


def _fault(
    override: Override, overrides: Sequence[str], conf_folders: Sequence[Path], sweeping: bool, sweep: Sequence[str]
) -> str | None:
    key = override.key_or_group
    groups = {folder.name for conf in conf_folders for folder in conf.iterdir() if any(folder.rglob("*.yaml"))}
    if key.startswith("hydra"):
        return plugin_fault(key, override.value())
    if key in groups:
        return option_fault(key, override, conf_folders, sweeping)
    if override.is_add() or override.is_delete():
        return None
    node, _, rest = key.partition(".")
    chosen = chosen_options(overrides, conf_folders)
    for group in METHOD_GROUPS:
        exists = any(os.path.isfile(conf / group / f"{node}.yaml") for conf in conf_folders)
        if exists and node not in chosen.get(group, ()):
            swept = [text for text in sweep if is_swept(text, group) and node in chosen_options([text])[group]]
            if swept:
                return (
                    f"not every job of {swept[0]} has {node}. Make a sweep of the options with {node}, and one of "
                    f"the others without {node}'s settings."
                )
            return f"{node} is not part of this run; add {group}={node}."
    probe = rest.partition(".")[0]
    if node == "probe" and os.path.isfile(CONF / node / f"{probe}.yaml") and probe not in chosen.get(node, ()):
        return f"{probe} is not part of this run; add probe={probe}."
    known = known_settings(chosen, conf_folders)
    if any(isinstance(known.get(name), dict) and "." in name for name in _above(key)):
        return None  # an entry of a mapping
    if key not in known:
        siblings = [name for name in known if name.startswith(f"{node}.")]
        if rest and siblings:
            names = [name.removeprefix(f"{node}.") for name in siblings if "._" not in name]
            listed = f"Settings of {node}: {', '.join(names)}."
            return f"there is no such setting. {did_you_mean(rest, names) or listed}"
        top = sorted({name.partition(".")[0] for name in known} | groups)
        return f"there is no such setting. {did_you_mean(node, top) or 'See python -m runner --cfg job.'}"
    if isinstance(known[key], list) and isinstance(override.value(), dict):
        return f"it must be {A_LIST}."
    if isinstance(known[key], dict) and isinstance(override.value(), list):
        return f"it must be {A_MAPPING}." if rest else f"this is a group of settings; set {key}.KEY=VALUE."
    if override.is_sweep_override() and not sweeping:
        return "several values make a sweep; add -m, or write a list as [a,b]."
    return None


def _above(key: str) -> list[str]:
    """The keys above `key`: a and a.b of a.b.c."""
    parts = key.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def option_fault(group: str, override: Override, conf_folders: Sequence[Path], sweeping: bool) -> str | None:
    """What is wrong with an override of a group, in words."""
    files = [file.relative_to(conf / group) for conf in conf_folders for file in (conf / group).rglob("*.yaml")]
    options = sorted(str(file.with_suffix("")) for file in files)
    listed = f"Options: {', '.join(options)}."
    for option in options_of(override):
        if option is None and group in OPEN_GROUPS:
            continue
        if not isinstance(option, str):
            return f"name one of the group's options. {listed}"
        if option not in options:
            return f"{group} has no option {option}. {did_you_mean(option, options)} {listed}".replace("  ", " ")
    if isinstance(override.value(), list) and group not in LIST_GROUPS:
        return f"{group} takes one option, not a list. {listed}"
    if override.is_sweep_override() and not sweeping:
        return f"several options make a sweep; add -m, or write a list: '{group}=[a,b]'."
    return None


def chosen_options(overrides: Sequence[str], conf_folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """For each group its chosen options: those of the overrides, else of the case, of the experiment, the defaults."""
    chosen = dict(_defaults(CONF / "config.yaml"))
    named = {override.key_or_group: [*map(str, options_of(override))] for override in all_parsed(overrides)}
    for group in (EXPERIMENT, CASE):
        for file in (folder / group / f"{record}.yaml" for record in named.get(group, ()) for folder in conf_folders):
            chosen |= _defaults(file) if os.path.isfile(file) else {}
    return chosen | named


def _defaults(file: Path) -> dict[str, list[str]]:
    """The options that a file's defaults list names, by group."""
    return _read_defaults(file, os.stat(file).st_mtime_ns)


@lru_cache(maxsize=1000)
def _read_defaults(file: Path, _modified: int) -> dict[str, list[str]]:
    chosen = {}
    for default in OmegaConf.load(file).get("defaults", ()):
        for group, option in default.items() if isinstance(default, DictConfig) else ():
            if option is not None:
                options = list(option) if isinstance(option, ListConfig) else [option]
                chosen[group.removeprefix("override ").removeprefix("/")] = options
    return chosen


def known_settings(chosen: Mapping[str, Sequence[str]], conf_folders: Sequence[Path] = (CONF,)) -> dict[str, object]:
    """Every key that a run with the chosen options has, as in `train.epochs`, with its default."""
    tree = OmegaConf.load(CONF / "config.yaml")
    keys = {}
    for node in tree:
        if node not in ("defaults", "hydra"):
            keys |= _paths(str(node), tree._get_node(node))
    for group, options in chosen.items():
        for file in (conf / group / f"{option}.yaml" for conf in conf_folders for option in options):
            if os.path.isfile(file):  # unlike Path.is_file it takes a name of any length
                nodes = OmegaConf.load(file)
                keys |= _paths("", nodes) if group in METHOD_GROUPS else _paths(group, nodes)
    return keys


def _paths(prefix: str, node: Node) -> dict[str, object]:
    """The keys from `node` on; a default of several values is a list or a dict."""
    if not isinstance(node, DictConfig):
        return {prefix: list(node) if isinstance(node, ListConfig) else node._value()}
    paths = {prefix: {}} if prefix else {}
    for key in node:
        paths |= _paths(f"{prefix}.{key}" if prefix else str(key), node._get_node(key))
    return paths


def exit_config_error(error: SettingError) -> NoReturn:
    """Show what is wrong with the settings and end the program with exit code 2."""
    from rich.console import Console

    if not is_first():  # of several processes one tells it, if the others leave it the time to
        time.sleep(SECONDS_TO_TELL)
        raise SystemExit(WRONG_SETTING)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print("Wrong setting.", style="bold red", end=" ")
    console.print(one_line(redact(str(error)), sys.argv[1:]))
    raise SystemExit(WRONG_SETTING)
