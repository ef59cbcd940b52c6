"""How a table of several runs looks on a terminal, and where there is none."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text


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
