"""A console that no text can command."""

import io

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runner.tracking.console import RunConsole
from runner.tracking.terminal import terminal

EVIL = "a\x1b[31mb\x07\x9b2J\rc"


def table(text):
    grid = Table.grid()
    grid.add_row(text, Text(text))
    return grid


@pytest.mark.parametrize("shape", [Text, table, lambda text: Panel(table(text)), str])
def test_what_a_text_holds_is_shown_and_does_not_act(shape):
    stream = io.StringIO()
    terminal(file=stream, width=200, color_system=None, markup=False).print(shape(EVIL))
    # rich drops the bell and the carriage return of a Text itself
    assert r"a\x1b[31mb" in stream.getvalue()
    assert r"\x9b2J" in stream.getvalue()
    assert stream.getvalue().replace("\n", "").isprintable()


def test_styles_of_ones_own_stay():
    stream = io.StringIO()
    terminal(file=stream, force_terminal=True, color_system="standard", width=80).print(Text(EVIL, "bold red"))
    assert stream.getvalue().startswith("\x1b[1;31m")
    assert stream.getvalue().count("\x1b") == 2  # on and off


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_run_shows_rows_messages_and_results_in_printable_characters(on_terminal):
    stream = io.StringIO()
    console = RunConsole(console=terminal(file=stream, force_terminal=on_terminal, color_system=None, width=100))
    console.start(EVIL, [("data", EVIL)])
    console.progress(1, 10, 1, 2, 0.5)
    console.message(EVIL, "warning")
    console.finish("failed", [("reason", EVIL)])
    text = stream.getvalue()
    assert text.count(r"\x1b[31m") >= 3
    assert "\x1b[31m" not in text
    assert "\x9b" not in text
