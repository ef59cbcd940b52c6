"""Tables of several runs on the terminal, and as lines of ASCII where there is none."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.config.text import last_parts
from runner.tracking.console import is_plain
from runner.tracking.terminal import terminal

WIDTH = 80  # of text in lines, such as verdicts
NUMBER = re.compile(r"(-?\d+)((?:\.\d+)?(?:e[+-]?\d+)?)")


def console_table(*, plain: bool) -> Table:
    """A table without columns yet: with a rule on a terminal, of bare text where it is `plain`."""
    look = {"box": None} if plain else {"box": box.SIMPLE_HEAD, "border_style": "dim", "header_style": "dim"}
    return Table(pad_edge=False, **look)


def add_columns(
    table: Table,
    columns: Mapping[str, Sequence[Text]],
    *,
    numeric: Collection[str] = (),
    uncut: Collection[str] = (),
    plain: bool,
) -> None:
    """Fill a table with cells by the heading of their column; a row never takes a second line.

    Where there is too little room the widest columns are cut first, those in `uncut` last. Headings break between
    words, and the decimal points of a column in `numeric` lie under one another.
    """
    for heading, cells in columns.items():
        is_number = heading in numeric
        texts = aligned([cell.plain for cell in cells]) if is_number else [cell.plain for cell in cells]
        head = heading if plain else _broken(heading, max(map(cell_len, texts), default=0))
        width = max(map(cell_len, head.splitlines()), default=0) if is_number else 0
        for cell, text in zip(cells, texts, strict=True):
            cell.plain, cell.no_wrap, cell.overflow = text.rjust(width), True, "ellipsis"
        title = Text(head, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis")
        table.add_column(title, no_wrap=heading in uncut)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)


def aligned(cells: Sequence[str]) -> list[str]:
    """The cells of a column with their numbers padded, so that the decimal points lie under one another.

    >>> from runner.report.console_table import aligned
    >>> aligned(["9.8 ± 12.0", "10 ± 0.25"])
    [' 9.8 ± 12.0 ', '10   ±  0.25']
    """
    numbers = [NUMBER.findall(cell) for cell in cells]
    places = range(max(map(len, numbers), default=0))
    sizes = [
        [max(len(each[place][half]) for each in numbers if len(each) > place) for half in (0, 1)] for place in places
    ]
    texts = []
    for cell in cells:
        sizes_left = iter(sizes)

        def padded(match: re.Match, sizes_left=sizes_left) -> str:
            whole, rest = next(sizes_left)
            return match[1].rjust(whole) + match[2].ljust(rest)

        text = NUMBER.sub(padded, cell)
        texts.append(text if text != cell or NUMBER.search(cell) else cell.rjust(sizes[0][0] if sizes else 0))
    widest = max(map(cell_len, texts), default=0)
    return [text + " " * (widest - cell_len(text)) for text in texts]


def _broken(heading: str, width: int) -> str:
    """The words of a heading in lines that are no wider than `width`, or than the longest word."""
    words = heading.split()
    width = max([width, *map(cell_len, words)])
    lines: list[str] = []
    for word in words:
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as the terminal at most; without a terminal each row is one line, however wide."""
    if is_plain(console):
        terminal(file=console.file, width=10_000, highlight=False).print(table)
    else:
        console.print(table)


def varied_settings(
    runs: Sequence[Sequence[str]], common: Collection[str]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The last part of each key that the runs set otherwise than in `common`, and each run's values by these keys.

    Where two keys end alike, both are whole.
    """
    own = [[override.partition("=") for override in overrides if override not in common] for overrides in runs]
    keys = list(dict.fromkeys(key for run in own for key, _, _ in run))
    return dict(zip(keys, last_parts(keys), strict=True)), [{key: value for key, _, value in run} for run in own]


def short_labels(runs: Sequence[Sequence[str]]) -> list[str]:
    """What tells each run from the others, in short: "clip=0.01 seed=0"."""
    common = [word for word in runs[0] if len(runs) > 1 and all(word in words for words in runs)] if runs else []
    names, values = varied_settings(runs, common)
    return [" ".join(f"{names[key]}={value}" for key, value in each.items()) for each in values]
