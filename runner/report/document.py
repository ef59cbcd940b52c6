"""The blocks of a report, which html.py and markdown.py format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Link:
    """Text that links to `path`, relative to the report's folder."""

    text: str
    path: str


@dataclass(frozen=True)
class Code:
    """A command or other text to be copied unchanged."""

    text: str


@dataclass(frozen=True)
class Mark:
    """A word after a sign; `kind` ("good", "bad" or "open") chooses the colour."""

    sign: str
    word: str
    kind: str


@dataclass(frozen=True)
class Remark:
    """Text with a less important line below it, such as a source."""

    text: str
    remark: str


@dataclass(frozen=True)
class Unfolding:
    """Text whose `rest` is folded away if the format can."""

    text: str
    rest: str


Cell = str | Link | Code | Mark | Remark | Unfolding


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Facts:
    """Short labelled lines."""

    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; the columns in `numeric` are aligned to the right.

    `full_names` has the whole names of columns with a short one, by position. A long table is `folded` away under this
    text if the format can.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    caption: str = ""
    full_names: Mapping[int, str] = field(default_factory=dict)
    folded: str = ""


@dataclass(frozen=True)
class Listing:
    """Text to copy, folded away under a title; a format without folding leaves it out."""

    title: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG at `path`, relative to the report's folder; `alt` describes it for screen readers."""

    path: str
    png: bytes = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, as many in a row as fit."""

    pictures: tuple[Picture, ...]


Block = Heading | Paragraph | Facts | Table | Listing | Picture | Gallery


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]
