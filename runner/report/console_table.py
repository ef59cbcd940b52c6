"""Tables of several runs on the terminal, and as lines of ASCII where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.results.arms import last_parts
from runner.tracking.console import is_plain
from runner.tracking.terminal import terminal

WIDTH = 80  # of tables that need no more


def console_table(title: str, *, plain: bool) -> Table:
    """A table without columns yet: with rules on a terminal, of bare text where it is `plain`."""
    return Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=None if plain else box.SIMPLE_HEAD,
        border_style="dim",
        header_style="" if plain else "dim",
        caption_style="dim",
        caption_justify="left",
        pad_edge=False,
    )


def print_table(console: Console, table: Table, most: int | None = None) -> None:
    """Print a table at most `most` columns wide; without a terminal each row is one line, however wide."""
    if is_plain(console):
        terminal(file=console.file, width=10_000, highlight=False).print(table)
    else:
        console.print(table, width=most and min(console.width, most))


def varied_overrides(
    runs: Sequence[Sequence[str]], common: Sequence[str], *, plain: bool
) -> tuple[list[str], list[str]]:
    """The text of each run's overrides but those in `common`, and the keys if the texts shorten them.

    On a terminal a key is shortened to its last part, where no two look alike, and each override has a line.
    """
    own = [[override for override in overrides if override not in common] for overrides in runs]
    keys = list(dict.fromkeys(override.partition("=")[0] for overrides in own for override in overrides))
    short = dict(zip(keys, keys if plain else last_parts(keys), strict=True))
    texts = [[short[key] + sign + value for key, sign, value in (o.partition("=") for o in each)] for each in own]
    return [(" " if plain else "\n").join(each) for each in texts], keys if [*short.values()] != keys else []
