"""The settings of one run as Hydra composes them from a command line, without Hydra running anything."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from runner.config.diagnose import diagnose
from runner.config.extensions import search_folders
from runner.config.hydra_loader import checked
from runner.config.recipes import without_replaced
from runner.config.settings import Settings
from runner.config.validation import CONF, validate


def compose_run(words: Sequence[str], *, typed: Sequence[str]) -> Settings:
    """The validated settings of the overrides `words`, of which the user typed `typed`. Raises SettingError."""
    folders = search_folders(words)
    try:
        with checked(words, typed=typed), initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=list(words))
        return validate(without_replaced(composed, words, folders), folders)
    except HydraException as error:
        raise diagnose(words, error, folders) from None


def validate_again(settings: Settings, words: Sequence[str]) -> Settings:
    """Settings that were put together from validated ones, validated as a whole. Raises SettingError."""
    return validate(OmegaConf.create(settings.plain()), search_folders(words))
