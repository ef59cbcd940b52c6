"""Values of the environment that may be secret, as an API key: none may reach a run's files, W&B or the console.

A variable is taken to hold a secret by its name: one with KEY, TOKEN, SECRET, PASSWORD or CREDENTIAL in it. Short
values, as of `TOKENIZERS_PARALLELISM=false`, and paths of files that exist, as of a file with a key, are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import quote

from runner.config.text import SettingError

WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
SHORTEST = 8  # characters


def secret_values() -> dict[str, str]:
    """The values of the environment that may be secret, by the names of their variables; the longest first."""
    return _secrets_in(tuple(os.environ.items()))


@lru_cache(maxsize=1)
def _secrets_in(environment: tuple[tuple[str, str], ...]) -> dict[str, str]:
    named = {name: value.strip() for name, value in environment if any(word in name.upper() for word in WORDS)}
    found = {name: value for name, value in named.items() if len(value) >= SHORTEST and not os.path.exists(value)}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def redact(text: str) -> str:
    """`text` with the name of its variable, as `<WANDB_API_KEY>`, in the place of every secret value."""
    for name, value in secret_values().items():
        for form in _forms(value):
            text = text.replace(form, f"<{name}>")
    return text


def check_no_secrets(settings: object, place: str = "") -> None:
    """Raise a SettingError that names key and variable if settings (plain data) hold the value of a secret."""
    values = secret_values()
    if values:
        _check(settings, place, values)


def check_no_secret_words(words: Iterable[str]) -> None:
    """Raise a SettingError if one of the command line's words holds the value of a secret."""
    for word in words:
        key, equals, value = word.partition("=")
        check_no_secrets(value if equals else word, redact(key) if equals else "the command line")


def _check(settings: object, place: str, values: Mapping[str, str]) -> None:
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            _check(str(key), place or "a key", values)
            _check(value, f"{place}.{key}" if place else str(key), values)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            _check(value, place, values)
    elif settings is not None and not isinstance(settings, bool):
        for name, value in values.items():
            if any(form in str(settings) for form in _forms(value)):
                raise SettingError(
                    f"{place}: it holds the value of the environment variable {name}, which would be written into the "
                    f"run's files. Take it out; what needs {name} reads it from the environment."
                )


def _forms(value: str) -> set[str]:
    """How a value may be written: as it is, as Python and JSON write it, as a part of an address."""
    return {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
