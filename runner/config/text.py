"""A setting in words: as the command line takes it, when two are the same, and the error that names a wrong one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

LONGEST_VALUE = 120  # characters of a value that a message repeats
LONGEST_MESSAGE = 2000


class SettingError(ValueError):
    """A wrong setting: the message names the key, the value and the remedy. Ends a program with exit code 2."""


def to_override(value: Any) -> str:
    """A value as the command line takes it.

    >>> from runner.config.text import to_override
    >>> to_override([None, True, {"layer4": 0.02}])
    '[null,true,{layer4:0.02}]'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(to_override(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{to_override(item)}" for key, item in value.items()) + "}"
    return str(value)


def visible(text: str, *, keep: str = "") -> str:
    """`text` in printable characters alone, so that it can neither break a line nor command the terminal.

    >>> from runner.config.text import visible
    >>> visible("two\\nlines, \\x1b[31mred")
    'two\\\\nlines, \\\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, choices: Iterable[object], most: int) -> list[str]:
    """At most this many of the choices that are spelt nearly as `word`, the nearest first."""
    return get_close_matches(word, [str(choice) for choice in choices], n=most)


def did_you_mean(word: str, choices: Iterable[object]) -> str:
    """`Did you mean x?` for the nearest of `choices`, or an empty string."""
    near = nearest(word, choices, 1)
    return f"Did you mean {near[0]}?" if near else ""


def override_key(word: str) -> str:
    """The key that an override of the command line sets.

    >>> from runner.config.text import override_key
    >>> override_key("+agc.clip=0.01")
    'agc.clip'
    """
    return word.partition("=")[0].lstrip("+~")


def last_parts(keys: Sequence[str]) -> list[str]:
    """The part of each key after the last dot, or the whole key if two have the same last part."""
    parts = [key.rpartition(".")[2] for key in keys]
    return [part if parts.count(part) == 1 else key for key, part in zip(keys, parts, strict=True)]


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if it has none.

    >>> from runner.config.text import first_line
    >>> first_line(ValueError("\\nno such file\\nin data")), first_line(AssertionError())
    ('no such file', 'AssertionError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """`text`, without its middle if it is longer than `most` characters."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[: most * 2 // 3]}...({left_out} more)...{text[-most // 3 :]}"


def one_line(message: str, words: Sequence[str] = ()) -> str:
    """A message for the terminal: one line, printable, of the values of `words` no more than a part of a line each.

    >>> from runner.config.text import one_line
    >>> one_line("name=" + "x" * 300 + ": too long")
    'name=xxx...: too long'
    """
    message = visible(message)
    for word in words:
        typed = visible(word.partition("=")[2])
        for value in (typed, typed.strip("'\"[]{}")):
            if len(value) > LONGEST_VALUE:
                message = message.replace(value, shortened(value))
    message = re.sub(rf"[^\s]{{{2 * LONGEST_VALUE},}}", lambda found: shortened(found[0]), message)
    return shortened(message, LONGEST_MESSAGE)


def same_value(a: str, b: str) -> bool:
    """Whether two values of an override are one and the same setting.

    >>> from runner.config.text import same_value
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
