"""A comparison of runs on the console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import ascii_uppercase

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from runner.report.console_table import print_table
from runner.results.comparison import ABSENT, Comparison, Measured
from runner.results.number_text import format_count, format_duration, format_number, format_share, format_value
from runner.tracking.console import is_plain
from runner.tracking.terminal import terminal

COMMIT_CHARACTERS = 12
FORMATS = {
    "share": lambda value: format_share(value, 2),
    "loss": lambda value: format_number(value, 4),
    "count": lambda value: format_count(value) if value >= 10_000 else f"{value:g}",
    "speed": lambda value: format_number(value, 0),
    "seconds": format_duration,
    "memory": lambda value: f"{value:.2f}",
    "text": lambda value: format_value(value, 6),
}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the differences, then the results. Without a terminal each row is one line, however wide."""
    console = console or terminal(highlight=False)
    plain = is_plain(console)
    names = [(letter, str(run.folder)) for letter, run in zip(ascii_uppercase, comparison.runs, strict=False)]
    console.print()
    for letter, folder in names:
        console.print(Text.assemble((letter, "bold"), f"  {folder}"), soft_wrap=True)
    letters = [letter for letter, _ in names]
    code = {
        key: tuple(text[:COMMIT_CHARACTERS] for text in texts) if key == "git.commit" else texts
        for key, texts in comparison.code.items()
    }
    _part(console, "settings", _table(letters, comparison.settings.items()))
    _part(console, "code", _table(letters, code.items()))
    rows = [(f"{'*' if row.differs else ' '} {row.name}", _cells(row)) for row in comparison.results]
    _part(console, "results (* differs)", _table(letters, rows, numbers=True))
    curves = [
        sentence or f"{letter}: as A's in every epoch, to the last bit."
        for letter, sentence in comparison.curves.items()
    ]
    for title, sentences in (
        ("test scores", comparison.scores),
        ("learning curves", curves),
        ("notes", comparison.notes),
    ):
        if sentences:
            _heading(console, title)
            for sentence in sentences:
                _sentence(console, sentence, plain)
    console.print()
    if comparison.identical:
        _sentence(
            console,
            "identical, as far as the folders tell: settings, code, results and curves; speed is not compared.",
            plain,
        )
        console.print()


def _part(console: Console, title: str, table: Table) -> None:
    if table.row_count:
        _heading(console, title)
        print_table(console, table)
    else:
        console.print()
        console.print(Text.assemble((title, "bold"), ": identical"))


def _heading(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, "bold"))


def _sentence(console: Console, sentence: str, plain: bool) -> None:
    if plain:
        console.print(Text(f"  {sentence}"), soft_wrap=True)
    else:
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))


def _table(letters: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], *, numbers: bool = False) -> Table:
    """A row a key, a column a run."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    for letter in letters:
        table.add_column(letter, justify="right" if numbers else "left", overflow="fold")
    for key, texts in rows:
        table.add_row(Text(f"  {key}"), *(Text(text, "dim" if text == ABSENT else "") for text in texts))
    return table


def _cells(row: Measured) -> list[str]:
    return [ABSENT if value is None else FORMATS[row.kind](value) for value in row.values]
