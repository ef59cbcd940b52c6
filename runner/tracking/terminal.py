"""A console that escapes control characters, which names of files, classes and folders may have."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

from runner.config.text import visible


def terminal(**options: object) -> Console:
    """A rich console with these options that writes control characters in texts as `\\x1b`; its own styles stay.

    >>> from runner.tracking.terminal import terminal
    >>> terminal(color_system=None).print("a\\x1b[31mb")
    a\\x1b[31mb
    """
    console = Console(**options)
    console.push_render_hook(_Printable())
    return console


def ascii_line(text: str) -> str:
    """A text on one line, with every character beyond ASCII escaped."""
    return " ".join(text.split("\n")).encode("ascii", "backslashreplace").decode()


class _Printable(RenderHook):
    def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(renderable) for renderable in renderables]


class _Shown:
    """A renderable whose texts are printable."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(visible(segment.text, keep="\n"), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.renderable)
