"""The words of a command line as people type them, brought into the form that Hydra's grammar takes.

Hydra takes no override behind a flag that stands between overrides, and of characters only ASCII letters, digits and
some signs without quotes. So flags go to the front, and a value with other characters gets the quotes it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from runner.config.grammar import parsed, quoted
from runner.config.limits import LIMITS
from runner.config.options import SINGLE_GROUPS
from runner.config.schema import Root
from runner.config.text import SettingError, did_you_mean

TAKE_A_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
TAKE_A_VALUE += ("--experimental-rerun",)
MAY_TAKE_A_VALUE = ("--info", "-i")
STRUCTURE = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[\[\]{},():])""")  # quoted texts, brackets, commas
NEEDS_QUOTES = re.compile(r"[^A-Za-z0-9_/\-\\+.$%*@?|:\s]")
LAST = "last.pt"


def _declared_kinds() -> Iterator[tuple[str, Any]]:
    """Each setting whose type does not depend on an option, as in `train.max_time`, and its type."""
    for node, kind in get_type_hints(Root).items():
        settings = get_type_hints(kind) if is_dataclass(kind) else {}
        settings |= {key: limit.kind for key, limit in LIMITS.get(node, {}).items() if node in SINGLE_GROUPS}
        yield from ((f"{node}.{key}", each) for key, each in settings.items())
        yield node, kind


TEXTS = {key for key, kind in _declared_kinds() if ({*get_args(kind)} - {NoneType} or {kind}) == {str}}


def hydra_words(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments, flags first, each value with the quotes that the grammar asks for.

    >>> from runner.config.arguments import hydra_words
    >>> hydra_words(["norm=agc", "--cfg", "job", "wandb.project=größe", "wandb.tags=[a#1,b]"])
    ['--cfg', 'job', 'norm=agc', "wandb.project='größe'", "wandb.tags=['a#1',b]"]
    """
    flags, overrides, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(_with_run_folder(word, arguments) if word.startswith("resume=") else with_quotes(word))
            continue
        flags.append(word)
        if rest and (word in TAKE_A_VALUE or (word in MAY_TAKE_A_VALUE and "=" not in rest[0])):
            flags.append(rest.pop(0))
    return [*flags, *overrides]


def with_quotes(word: str) -> str:
    """An override with quotes around those of its values that the grammar would not take; `~/` is the home folder."""
    key, equals, value = word.partition("=")
    if equals and key in TEXTS:  # the grammar would read paths.outputs=2024_01_31 as 20240131
        value = _element_by_element(value, _is_number_spelt_otherwise)
        word = f"{key}={value}"
    if not equals or parsed(word) is not None:
        return word
    if value == "~" or value.startswith("~/"):
        return f"{key}={quoted(str(Path(value).expanduser()))}"
    candidates = [_element_by_element(value)]
    if _exists(value):  # an apostrophe or a bracket in a path
        candidates.insert(0, quoted(value))
    return next((f"{key}={candidate}" for candidate in candidates if parsed(f"{key}={candidate}")), word)


def _element_by_element(value: str, needs_quotes: Callable[[str], object] = NEEDS_QUOTES.search) -> str:
    parts = STRUCTURE.split(value)
    for number, part in enumerate(parts):
        text = part.strip()
        if number % 2 == 0 and needs_quotes(text) and "${" not in text:
            parts[number] = part.replace(text, quoted(text))
    return "".join(parts)


def _is_number_spelt_otherwise(text: str) -> bool:
    """Whether the grammar takes a text for a number and would write it in another way, as 1_000 or 1.50."""
    override = parsed(f"x={text}")
    value = override.value() if override is not None else None
    return isinstance(value, int | float) and not isinstance(value, bool) and str(value) != text


def _with_run_folder(word: str, arguments: Sequence[str]) -> str:
    """`resume=` with the path of a run's folder, whichever way it was written. Raises SettingError if none is there."""
    typed = word.removeprefix("resume=")
    override = parsed(word)
    value = override.value() if override is not None else typed
    if value is None:
        return word
    if not isinstance(value, str) or _exists(typed):
        value = typed
    if not value.strip():
        raise SettingError("resume=: it must name the folder of a run, as in resume=outputs/runs/NAME.")
    folder = Path(value).expanduser()
    if not _exists(value) and len(folder.parts) == 1:
        folder = _named(value, arguments)
    if _exists(str(folder)) and folder.is_file():
        if folder.name != LAST:
            raise SettingError(f"resume={value}: this is a file; give the folder of the run, or its {LAST}.")
        folder = folder.absolute().parent
    if folder.name == "checkpoints" and _exists(str(folder / LAST)):
        folder = folder.parent
    return f"resume={quoted(str(folder))}"


def _named(name: str, arguments: Sequence[str]) -> Path:
    """The folder of the run of that name, below paths.outputs. Raises SettingError if there is none, or several."""
    given = [
        override.value()
        for word in map(with_quotes, arguments)
        if (override := parsed(word)) is not None and override.key_or_group == "paths.outputs"
    ]
    outputs = Path(str(given[-1] if given else "outputs"))
    folders = [path for pattern in ("runs/*", "sweeps/*/*") for path in sorted(outputs.glob(pattern)) if path.is_dir()]
    found = [folder for folder in folders if folder.name == name]
    if len(found) > 1:
        raise SettingError(f"resume={name}: {len(found)} runs have this name; write resume={found[0]}, say.")
    if not found:
        hint = did_you_mean(name, [folder.name for folder in folders])
        raise SettingError(f"resume={name}: no run lies there, nor in {outputs / 'runs'}. {hint}".rstrip())
    return found[0]


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # longer than a path may be; a null character; no such user
        return False
