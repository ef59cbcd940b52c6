"""Hydra's grammar of overrides: the words of a command line, read one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.errors import HydraException


@lru_cache(maxsize=1024)
def parsed(word: str) -> Override | None:
    """A word as an override, not to be changed; None for a flag and for what the grammar does not know."""
    if word.startswith("-") or not ("=" in word or word.startswith("~")):
        return None
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError):  # a number of 5,000 digits; 1,000 brackets
        return None


def all_parsed(words: Sequence[str]) -> list[Override]:
    """Those of `words` that are overrides; what is wrong with another is told when Hydra composes."""
    return [override for word in words if (override := parsed(word)) is not None]


def is_swept(word: str, key: str | None = None) -> bool:
    """Whether the override `word` (of `key`, if one is given) has several values.

    >>> from runner.config.grammar import is_swept
    >>> is_swept("agc.clip=0.01,0.02"), is_swept("norm=[agc,none]"), is_swept("seed=1,2", "name")
    (True, False, False)
    """
    override = parsed(word)
    return override is not None and override.is_sweep_override() and key in (None, override.key_or_group)


def options_of(override: Override) -> Iterator[object]:
    """Every option that an override of a group names: alone, in a list, in a sweep."""
    value = override.value()
    for choice in value.list if isinstance(value, Sweep) and hasattr(value, "list") else [value]:
        for option in choice if isinstance(choice, list) else [choice]:
            yield option.text if isinstance(option, QuotedString) else option


def quoted(text: str) -> str:
    """A text as the grammar takes any text.

    >>> from runner.config.grammar import parsed, quoted
    >>> quoted("Jörg's runs"), parsed("name=" + quoted("a's \\\\' b\\\\")).value()
    ("'Jörg\\\\'s runs'", "a's \\\\' b\\\\")
    """
    # a backslash is one unless a quote follows it
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"
