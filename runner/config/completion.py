"""What an override that is being typed may become: keys of groups and settings, options, values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from runner.config.extensions import add_search_path, search_folders
from runner.config.grammar import is_swept, options_of, parsed
from runner.config.hydra_loader import checked
from runner.config.options import CONF, LIST_GROUPS
from runner.config.plugins import LAUNCHER, LAUNCHERS


def complete_override(typed: str, before: Sequence[str]) -> Iterable[str]:
    """Keys of groups and settings or, behind a `=`, values; `before` are the words that were typed before."""
    words = add_search_path([word for word in before if parsed(word) is not None])
    folders = search_folders(words)
    key, equals, value = typed.partition("=")
    if key == LAUNCHER:
        return [f"{LAUNCHER}={launcher}" for launcher in LAUNCHERS]
    groups = {path.name for folder in folders for path in folder.iterdir() if any(path.glob("**/*.yaml"))}
    if not equals:
        return [*(f"{group}=" for group in [*groups, LAUNCHER]), *_keys(key, _composed(words))]
    if key in groups:
        begun = value[: 1 + max(map(value.rfind, "[,("))]  # the options before the one that is being typed
        taken = re.split(r"[\[,(]", begun)
        return [f"{key}={begun}{option}" for option in options_in(key, folders) if option not in taken]
    setting = OmegaConf.select(_composed(words), key)
    if isinstance(setting, bool):
        return [f"{key}=true", f"{key}=false"]
    return [] if setting is None or OmegaConf.is_config(setting) else [f"{key}={setting}"]


def options_in(group: str, folders: Sequence[Path]) -> list[str]:
    """The options of a group: bjorck/fig4_divergence, for one."""
    places = [folder / group for folder in folders]
    files = [file.relative_to(place).with_suffix("") for place in places for file in place.rglob("*.yaml")]
    return [file.as_posix() for file in files]


def _keys(typed: str, config: DictConfig) -> list[str]:
    """The settings in the node that `typed` names so far, and its nodes with a dot behind."""
    above = typed.rpartition(".")[0]
    node = OmegaConf.select(config, above) if above else config
    if not isinstance(node, DictConfig):
        return []
    names = {str(key): isinstance(node._get_node(key), DictConfig) for key in node if not str(key).startswith("_")}
    return [f"{above}{above and '.'}{name}{'.' if is_node else '='}" for name, is_node in names.items()]


def _composed(words: Sequence[str]) -> DictConfig:
    """The settings of a run with `words`; of a sweep those of all its options, or of its first values."""
    one_run = [_one_run(word) for word in words]
    for overrides in (one_run, [word for word in one_run if "." not in word.partition("=")[0]], []):
        try:
            with checked(overrides, typed=words), initialize_config_dir(str(CONF), version_base="1.3"):
                return compose("config", overrides=overrides)
        except Exception:  # a word before is wrong: the settings of the options are offered, or of the default run
            continue
    return OmegaConf.create()


def _one_run(word: str) -> str:
    override = parsed(word)
    if not is_swept(word):
        return word
    values: list[Any] = list(dict.fromkeys(options_of(override)))
    key = override.key_or_group
    return f"{key}=[{','.join(map(str, values))}]" if key in LIST_GROUPS else f"{key}={values[0]}"
