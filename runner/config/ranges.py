"""The kinds of ranges that a setting may have: numbers, words, texts, paths, times, and lists of them.

A range tells whether a value lies in it (`in`), what it must be instead (`str`), and the type of its values (`kind`),
as OmegaConf reads types, for a setting whose default does not tell it. `parse_range` reads a range as it is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, Optional, Union

LARGEST = 10**9  # what is larger is a slip, and beyond what torch and the memory can take


@dataclass(frozen=True)
class Range:
    """An interval of numbers; `None` leaves an end open to infinity, `above` and `below` exclude their end.

    `whole` takes whole numbers only.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False

    @property
    def kind(self) -> type:
        return int if self.whole else float

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return (
            value == value
            and abs(value) != inf  # a NaN lies in no interval, and infinity is no setting
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        above = "-inf" if self.above is None else self.above
        below = "inf" if self.below is None else self.below
        low = f"({above}" if self.at_least is None else f"[{_plain(self.at_least)}"
        high = f"{below})" if self.at_most is None else f"{_plain(self.at_most)}]"
        return f"it must {'be a whole number' if self.whole else 'lie'} in {low}, {high}"


def _plain(number: float) -> str:
    return "10^9" if number == LARGEST else f"{number}"


@dataclass(frozen=True)
class OneOf:
    """One of a few words or numbers."""

    choices: tuple[str | int, ...]

    @property
    def kind(self) -> type:
        return type(self.choices[0])

    def __contains__(self, value: object) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"it must be one of {', '.join(map(str, self.choices))}"


@dataclass(frozen=True)
class OrWord:
    """A number of a range, or one word."""

    range: Range
    word: str

    @property
    def kind(self) -> Any:
        return Union[self.range.kind, str]

    def __contains__(self, value: object) -> bool:
        return value == self.word or value in self.range

    def __str__(self) -> str:
        return f"{self.range}, or be {self.word}"


@dataclass(frozen=True)
class Sides:
    """A number of a range for a square, or two of them: height and width."""

    range: Range
    kind = Any

    def __contains__(self, value: object) -> bool:
        sides = value if isinstance(value, (list, tuple)) else [value, value]
        return len(sides) == 2 and all(side in self.range for side in sides)

    def __str__(self) -> str:
        return f"{self.range}, or be two such numbers, [height,width]"


@dataclass(frozen=True)
class OrNull:
    """A value of a range, or null."""

    range: Limit

    @property
    def kind(self) -> Any:
        return Optional[self.range.kind]

    def __contains__(self, value: object) -> bool:
        return value is None or value in self.range

    def __str__(self) -> str:
        return str(self.range)


@dataclass(frozen=True)
class Rising:
    """A list of numbers of a range, each larger than the one before; two of them where it is an interval."""

    entries: Range
    is_interval: bool = False

    @property
    def kind(self) -> Any:
        return list[self.entries.kind]

    def __contains__(self, value: object) -> bool:
        values = list(value)
        rises = all(a < b for a, b in pairwise(values))
        return rises and all(each in self.entries for each in values) and (len(values) == 2 or not self.is_interval)

    def __str__(self) -> str:
        if self.is_interval:
            return f"it must be two numbers, the smaller one first; {str(self.entries).replace('it', 'each', 1)}"
        return f"they must rise; {str(self.entries).replace('it', 'each', 1)}"


@dataclass(frozen=True)
class Each:
    """A list, or a mapping's values, each of which lies in a range."""

    entries: Range | Text | Values

    @property
    def kind(self) -> Any:
        return list[self.entries.kind]

    def __contains__(self, value: object) -> bool:
        return all(entry in self.entries for entry in (value.values() if isinstance(value, Mapping) else value))

    def __str__(self) -> str:
        return str(self.entries).replace("it must", "each entry must", 1)


@dataclass(frozen=True)
class Text:
    """A text of up to `at_most` characters, without some."""

    at_most: int
    without: str = ""
    kind = str

    def __contains__(self, value: object) -> bool:
        return 0 < len(str(value)) <= self.at_most and not {*str(value)} & {*self.without}

    def __str__(self) -> str:
        without = f", none of them {' '.join(self.without)}" if self.without else ""
        return f"it must have 1 to {self.at_most} characters{without}"


@dataclass(frozen=True)
class Values:
    """The values of a type for which `holds` is true."""

    kind: Any
    holds: Callable[[Any], bool]
    text: str

    def __contains__(self, value: object) -> bool:
        return self.holds(value)

    def __str__(self) -> str:
        return f"it must be {self.text}"


def is_path(value: object) -> bool:
    """Whether a text can be the path of a file or a folder, there or not."""
    path = os.fsencode(str(value))
    return 0 < len(path) < 4096 and all(len(part) <= 255 for part in path.split(b"/")) and b"\0" not in path


def _is_layer(value: object) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    return 0 < seconds_of(str(value)) <= LARGEST


def _are_arguments(value: object) -> bool:
    entries = [each for entry in value.values() for each in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return all(isinstance(each, (int, float, str, type(None))) for each in entries)  # a bool is an int


Limit = Range | OneOf | OrWord | Sides | OrNull | Rising | Each | Text | Values
WORDS: dict[str, Limit] = {
    "text": Text(200),
    "path": Values(str, is_path, "a path of at most 4095 bytes, 255 in each of its parts"),
    "layer": Values(Any, _is_layer, "a depth from 0.0 to 1.0, an index or a name"),
    "bool": Values(bool, lambda value: isinstance(value, bool), "true or false"),
    "time": Values(str, _is_duration, "a time with its unit, as in 45s, 90min, 11h or 2h30min"),
    "arguments": Values(dict, _are_arguments, "keyword arguments: numbers, words, truth values, or lists of these"),
}
LISTS = {"each": Each, "rising": Rising, "interval": partial(Rising, is_interval=True), "sides": Sides}
NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
INTERVAL = rf"(?:(>=?) ?{NUMBER}|([\[(]){NUMBER}, ?{NUMBER}([\])]))( int)?"
NOTATION = re.compile(rf"(?:({'|'.join(LISTS)}) )?(?:({'|'.join(WORDS)})|{INTERVAL})((?: or \w+)*)")


def parse_range(written: object) -> Limit:
    """The range that an option's YAML file writes, as conf/README.md explains.

    Raises ValueError, with the forms that there are, for anything else.

    >>> from runner.config.ranges import parse_range
    >>> parse_range("[0, 1)"), parse_range(["unit", "layer"])
    (Range(at_least=0, above=None, at_most=None, below=1, whole=False), OneOf(choices=('unit', 'layer')))
    """
    if isinstance(written, list) and written and all(isinstance(word, str) for word in written):
        return OneOf(tuple(written))
    match = NOTATION.fullmatch(written) if isinstance(written, str) else None
    if match is None or (match[5] and _number(match[6]) >= _number(match[7])):
        raise ValueError(
            'it must be an interval in quotes, as in "> 0", ">= 1 int" or "[0, 1)", '
            f"a list of words, as in [unit, layer], or one of {', '.join(WORDS)}"
        )
    of_list, word, sign, bound, opening, low, high, closing, whole, others = match.groups()
    if word:
        limit = WORDS[word]
    elif sign:
        limit = Range(**{"above" if sign == ">" else "at_least": _number(bound)}, at_most=LARGEST, whole=bool(whole))
    else:
        start, end = "above" if opening == "(" else "at_least", "below" if closing == ")" else "at_most"
        limit = Range(**{start: _number(low), end: _number(high)}, whole=bool(whole))
    limit = LISTS[of_list](limit) if of_list else limit
    for other in others.split(" or ")[1:]:
        limit = OrNull(limit) if other == "null" else OrWord(limit, other)
    return limit


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def seconds_of(duration: str) -> float:
    """The seconds of a time as in 1.5h, 90min, 2h30min or 45s; 0 for what is none.

    >>> from runner.config.ranges import seconds_of
    >>> seconds_of("2h30min"), seconds_of("90")
    (9000.0, 0.0)
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}d)?(?:{number}h)?(?:{number}min)?(?:{number}s)?", duration)
    parts = match.groups(default="0") if match else ()
    return float(sum(float(part) * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=bool(parts))))
