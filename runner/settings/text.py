"""A setting in words: as the command line takes it, when two are the same, and the error that names a wrong one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any


class SettingError(ValueError):
    """A wrong setting: the message names the key, the value and the remedy. Ends a program with exit code 2."""


def shown(value: Any) -> str:
    """A value as the command line takes it.

    >>> from runner.settings.text import shown
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


def same_value(a: str, b: str) -> bool:
    """Whether two values of an override are one and the same setting.

    >>> from runner.settings.text import same_value
    >>> same_value("0.10", "1e-1"), same_value("[agc]", "agc"), same_value("agc", "none")
    (True, True, False)
    """
    return canonical(a) == canonical(b)


@lru_cache(maxsize=10_000)
def canonical(value: str) -> object:
    """A hashable stand-in for a value of an override, equal for two that are the same setting.

    A number is a float, a list a tuple, a list of one entry that entry; all else is text without quotes.
    """
    text = value.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        entries = tuple(canonical(entry) for entry in text[1:-1].split(",")) if text[1:-1].strip() else ()
        return entries[0] if len(entries) == 1 else entries
    if text.lower() in ("true", "false", "null"):
        return text.lower()
    try:
        number = float(text)
    except ValueError:
        return re.sub(r"\s*([,:{}])\s*", r"\1", text)
    return text.lower() if math.isnan(number) else number
