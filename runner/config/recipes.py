"""Records of whole runs, `experiment=NAME`: what of one is left where the command line chooses otherwise.

A record chooses options and gives them values, and so does `case=NAME`, which changes a study's experiment. Where an
override chooses another option of a group, the record's values were meant for its own: `experiment=cifar10/resnet56
schedule=constant` must not keep a final_lr_share, nor `experiment=cifar10/resnet56 optimizer=adamw` a rate that was
SGD's. They give way to the option's own values, unless both options have the same settings: `model=resnet110` keeps
what the record says of resnet56.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from runner.config.diagnose import CASE, EXPERIMENT, chosen_options
from runner.config.grammar import all_parsed
from runner.config.options import CONF, METHOD_GROUPS, SINGLE_GROUPS, option_file, read_option


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
    for group in SINGLE_GROUPS:
        option, of_record = (_settings(group, options[0], conf_folders) for options in (chosen[group], record[group]))
        if option and option.keys() != of_record.keys():
            config[group] = option
            for override in given:
                if override.key_or_group.startswith(f"{group}."):
                    OmegaConf.update(config, override.key_or_group, override.value())
    for group in METHOD_GROUPS:
        for method in {*record[group]} - {*chosen[group]}:
            if not any(override.key_or_group.partition(".")[0] == method for override in given):
                config.pop(method, None)
    return config


def _settings(group: str, name: str, conf_folders: Sequence[Path]) -> Mapping[str, object]:
    """What settings an option of a group has; none where there is no such option, which is told when it is checked."""
    file = option_file(group, name, conf_folders)
    return read_option(group, name, file).settings if file else {}
