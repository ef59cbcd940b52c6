"""What a report consists of: blocks that html.py and markdown.py write, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Link:
    """Text that leads to `path`, which is relative to the report's folder."""

    text: str
    path: str


@dataclass(frozen=True)
class Code:
    """A command or another text that is copied as it stands."""

    text: str


@dataclass(frozen=True)
class Mark:
    """A word with a sign before it; `kind` is "good", "bad" or "open" and colours both where colours are shown."""

    sign: str
    word: str
    kind: str


@dataclass(frozen=True)
class Remark:
    """Text with a line below it that is less important, such as a source."""

    text: str
    remark: str


@dataclass(frozen=True)
class Unfolding:
    """Text of which the `rest` is folded away, where the format can."""

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
    """Short labelled lines: what ran, when, on what."""

    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; the columns in `numeric` are aligned to the right.

    A long table may be `folded` away under this text, where the format can.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    caption: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG that lies at `path`, relative to the report's folder; `alt` says what it shows to who cannot see it."""

    path: str
    png: bytes = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, as many in a row as there is room for."""

    pictures: tuple[Picture, ...]


Block = Heading | Paragraph | Facts | Table | Picture | Gallery


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]
