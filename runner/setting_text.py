"""A setting in words: as the command line takes it, and the error that names a wrong one. Plain Python alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SettingError(ValueError):
    """A wrong setting: the message names the key, the value and the remedy. Ends a program with exit code 2."""


def shown(value: Any) -> str:
    """A value as the command line takes it.

    >>> from runner.setting_text import shown
    >>> shown([None, True, {"layer4": 0.02}])
    '[null,true,{layer4:0.02}]'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(shown(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    return str(value)
