"""The settings that a run's folder or checkpoint holds, validated again: anybody may have written them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.options import CONF
from runner.config.settings import Settings
from runner.config.text import SettingError, to_override
from runner.config.trust import PLACES, Allowed, refuse_resolvers
from runner.config.validation import validate, with_defaults


def validate_stored(settings: Mapping, folder: Path, allowed: Allowed) -> Settings:
    """The settings of a run, with defaults for those that are newer than it. Raises SettingError.

    What chooses where things go is as by default: that is for the command line to say.
    """
    refuse_resolvers(settings, folder)
    settings = json.loads(json.dumps(settings))
    for key, default in OmegaConf.load(CONF / "config.yaml").items():
        if isinstance(default, DictConfig) and not isinstance(settings.get(key, {}), Mapping):
            raise SettingError(f"{folder}: {key}={to_override(settings[key])}: it must be a group of settings.")
    for node, _, name in (key.partition(".") for key in PLACES):
        settings.get(node, {}).pop(name, None)
    if "methods" in settings.get("paths", {}):  # of a run before the folder held more than methods
        settings["paths"]["extensions"] = settings["paths"].pop("methods")
    try:
        folders = [CONF, allowed.extensions] if allowed.extensions else [CONF]
        config = with_defaults(OmegaConf.create(settings), folders)
    except (OmegaConfBaseException, TypeError) as error:  # a list in the place of a mapping, say
        raise SettingError(f"{folder}: its settings cannot be used ({str(error).splitlines()[0]}).") from None
    return validate(allowed.put_in(config, folder))
