"""Records of whole runs, `experiment=NAME`: what of one is left where the command line chooses otherwise.

A record chooses options and gives them values, and so does `case=NAME`, which changes a study's experiment. Where an
override chooses another option of a group, the record's values were meant for its own: `experiment=cifar10/resnet56
schedule=constant` must not keep a final_lr_share, nor `experiment=cifar10/resnet56 optimizer=adamw` a rate that was
SGD's. They give way to the option's own values, unless both options have the same settings: `model=resnet110` keeps
what the record says of resnet56.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from runner.config.diagnose import CASE, EXPERIMENT, chosen_options
from runner.config.grammar import all_parsed
from runner.config.option_types import OPTION_TYPES
from runner.config.validation import CONF, METHOD_GROUPS


def without_replaced(
    composed: DictConfig, overrides: Sequence[str], conf_folders: Sequence[Path] = (CONF,)
) -> DictConfig:
    """What Hydra composed of `overrides`, without the record's values for options that an override replaces."""
    chosen = chosen_options(overrides, conf_folders)
    records = [f"{group}={name}" for group in (EXPERIMENT, CASE) for name in chosen.get(group, ())]
    if not records:
        return composed
    record = chosen_options(records, conf_folders)
    given = [override for override in all_parsed(overrides) if not override.is_delete()]
    config = composed.copy()
    OmegaConf.set_struct(config, False)
    for group in OPTION_TYPES:
        file = CONF / group / f"{chosen[group][0]}.yaml"
        if file.is_file() and _kind(group, chosen[group]) != _kind(group, record[group]):
            config[group] = OmegaConf.load(file)
            for override in given:
                if override.key_or_group.startswith(f"{group}."):
                    OmegaConf.update(config, override.key_or_group, override.value())
    for group in METHOD_GROUPS:
        for method in {*record[group]} - {*chosen[group]}:
            if not any(override.key_or_group.partition(".")[0] == method for override in given):
                config.pop(method, None)
    return config


def _kind(group: str, options: Sequence[str]) -> object:
    """What settings an option of a group has."""
    return next((kind for pattern, kind in OPTION_TYPES[group].items() if re.fullmatch(pattern, options[0])), None)
