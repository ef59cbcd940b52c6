"""The output of a run on the terminal, and as plain lines where there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from runner.results.metrics import SCORES, score_of
from runner.results.number_text import format_duration, format_lr, format_number, format_share
from runner.tracking.terminal import ascii_line, terminal

WIDEST = 100  # characters; wider panels and bars are hard to read
REFRESH_SECONDS = 0.25
PLAIN_PROGRESS_SECONDS = 30
STATUS_STYLES = {
    "completed": "bold green",
    "diverged": "bold magenta",
    "interrupted": "bold yellow",
    "failed": "bold red",
}
MESSAGE_STYLES = {"note": "bold cyan", "warning": "bold yellow", "error": "bold red"}
EPOCH_COLUMNS = (  # headings and widths, 78 characters with the mark of the best epoch
    ("epoch", 8),
    ("loss", 9),
    ("{score}", 10),
    ("loss", 11),
    ("{score}", 10),
    ("lr", 10),
    ("images/s", 10),
    ("time", 8),
)

Rows = Sequence[tuple[str, str]]


class RunConsole:
    """Shows a run: call `start`, then `progress` and `epoch` in turn, then `finish`; `message` at any time.

    On a terminal: a panel, a live display with two bars, one aligned row for each epoch. Elsewhere (`is_plain`): one
    line of ASCII for each event.

    The caller's thread draws the live display, at most four times a second. A separate thread could hold the console's
    lock while a data loader forks its workers.
    """

    def __init__(self, *, console: Console | None = None) -> None:
        self.console = console or terminal()
        self.plain = is_plain(self.console)
        self._job: tuple[int, int] | None = None
        self._validation = "validation"
        self._live: Live | None = None
        self._header_shown = False
        self._began: tuple[float, int] | None = None
        self._last_drawn = -math.inf

    def start(
        self, title: str, rows: Rows, *, job: tuple[int, int] | None = None, validation: str = "validation"
    ) -> None:
        """Show the settings as labelled rows; `job=(2, 6)` marks the second of six jobs of a sweep.

        `validation` is the name of the split that chooses best.pt.
        """
        self._job = job
        self._validation = validation
        self._header_shown, self._began, self._last_drawn = False, None, -math.inf
        position = f"job {job[0]}/{job[1]}" if job else ""
        if self.plain:
            self._line(f"{position}: {title}" if job else title)
            self._plain_rows(rows)
            return
        heading = Text.assemble((title, "bold"), (f"  {position}" if job else "", "cyan"))
        self.console.print()
        self.console.print(
            Panel(rows_grid(rows), title=heading, title_align="left", border_style="dim", width=self._width())
        )

    def progress(
        self,
        step: int,
        total_steps: int,
        epoch: int,
        epochs: int,
        loss: float | None = None,
        score: tuple[str, float | None] = ("accuracy", None),
        lr: float | None = None,
        images_per_second: float | None = None,
        *,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Update the live display; cheap to call often.

        `step` of `total_steps` optimizer steps are done, `epoch` (from 1) of `epochs` is running; `score` is a key of
        `SCORES` and a share of 1. `steps_per_epoch` defaults to total_steps / epochs.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = (now, step)
            if self.plain:
                self._last_drawn = now
        if not self._is_due(now):
            return
        steps_per_epoch = steps_per_epoch or math.ceil(total_steps / epochs)
        epoch_share = min(max((step - (epoch - 1) * steps_per_epoch) / steps_per_epoch, 0.0), 1.0)
        since, first_step = self._began
        pace = (now - since) / (step - first_step) if step > first_step else math.nan
        left = f"{format_duration(pace * (total_steps - step))} left"
        quality = f"loss {format_number(loss)}  {SCORES[score[0]]} {format_share(score[1])}"
        speed = f"lr {format_lr(lr)}  {format_number(images_per_second, 0)} images/s  {left}"
        if self.plain:
            self._line(f"step {step}/{total_steps}  epoch {epoch}/{epochs}  {quality}  {speed}")
            return
        total = f"job {self._job[0]}/{self._job[1]}" if self._job else "total"
        self._draw([(f"epoch {epoch}/{epochs}", epoch_share, quality), (total, step / max(total_steps, 1), speed)])

    def evaluation(self, what: str, images: int, total: int) -> None:
        """Show how many images of an evaluation after training are done, in the place of `progress`."""
        if images > 0 and not self._is_due(time.monotonic()):
            return
        if not self.plain:
            self._draw([(what, images / total, f"{images:,} of {total:,} images")])
        elif images > 0:
            self._line(f"{what}: {images}/{total} images")

    def preparing(self, what: str) -> None:
        """Say what is made ready before `start`: on a terminal, at which someone waits for the first imports."""
        if not self.plain:
            self.console.print(Text(f"Preparing {what} ...", style="dim"))

    def _is_due(self, now: float) -> bool:
        """Whether the live display, or the next plain line, is to be written."""
        if now - self._last_drawn < (PLAIN_PROGRESS_SECONDS if self.plain else REFRESH_SECONDS):
            return False
        self._last_drawn = now
        return True

    def epoch(self, row: Mapping[str, object]) -> None:
        """Add an epoch to the table.

        `row` has `epoch`, `epochs`, and optionally `train` and `validation` (with `loss` and `accuracy` or `mean_iou`,
        shares of 1), `lr`, `images_per_second`, `seconds` and `best` (True for the best validation score so far).
        """
        train, validation = row.get("train") or {}, row.get("validation") or {}
        score = score_of(validation, train) or "accuracy"
        best = bool(row.get("best"))
        speed = format_number(row.get("images_per_second"), 0)
        seconds = format_duration(row.get("seconds"))
        if self.plain:
            word = {"accuracy": "acc", "mean_iou": "mIoU"}[score]
            losses = [
                f"{name} loss {format_number(metrics.get('loss'))} {word} {format_share(metrics.get(score))}"
                for name, metrics in (("train", train), (self._validation.replace("validation", "val"), validation))
                if metrics
            ]
            end = [f"lr {format_lr(row.get('lr'))}", f"{speed} images/s", f"time {seconds}"] + ["best"] * best
            self._line("  ".join([f"epoch {row['epoch']}/{row['epochs']}", *losses, *end]))
            return
        if not self._header_shown:
            self._header_shown = True
            self._epoch_header(score)
        cells = [
            f"{row['epoch']}/{row['epochs']}",
            format_number(train.get("loss")),
            format_share(train.get(score)),
            format_number(validation.get("loss")),
            format_share(validation.get(score)),
            format_lr(row.get("lr")),
            speed,
            seconds,
        ]
        line = Text()
        for position, (cell, (_, width)) in enumerate(zip(cells, EPOCH_COLUMNS, strict=True)):
            line.append(cell.rjust(width), style="bold green" if best and position == 4 else "")
            if position == 4:
                line.append(" *" if best else "  ", style="bold green")
        self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True)

    def message(self, text: str, kind: str = "note") -> None:
        """Show a note, a warning or an error."""
        assert kind in MESSAGE_STYLES, kind
        if self.plain:
            self._line(f"{kind}: {text}")
            return
        self.console.print(Padding(rows_grid([(kind, text)], MESSAGE_STYLES[kind]), (0, 1)), width=self._width())

    def finish(self, status: str, rows: Rows) -> None:
        """Close the live display and show the results, in lines that are not wrapped: their commands can be copied."""
        self.stop()
        if self.plain:
            self._line(f"status: {status}")
            self._plain_rows(rows)
            return
        style = STATUS_STYLES.get(status, "bold")
        self.console.print()
        self.console.print(Rule(Text(status, style=style), style="dim", align="left"), width=self._width())
        column = max((len(label) for label, _ in rows), default=0) + 3
        for label, value in rows:
            for number, line in enumerate(value.splitlines() or [""]):
                name = f" {label if number == 0 else ''}".ljust(column)
                self.console.print(Text.assemble((name, "dim"), line), soft_wrap=True)
        self.console.print()

    def stop(self) -> None:
        """Remove the live display, if there is one; printed lines stay."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _width(self) -> int:
        return min(self.console.width, WIDEST)

    def _line(self, text: str) -> None:
        self.console.print(Text(ascii_line(text)), soft_wrap=True)
        self.console.file.flush()

    def _plain_rows(self, rows: Rows) -> None:
        for label, value in rows:
            for line in value.splitlines() or [""]:
                self._line(f"  {label}: {line}")

    def _draw(self, bars: Sequence[tuple[str, float, str]]) -> None:
        """Draw the live display, with a label, a bar and a text on each line."""
        width = self._width() - 3  # the terminal's ^C must not start a new line, which would leave the bars behind
        labels, texts = max(len(label) for label, _, _ in bars), max(len(text) for _, _, text in bars)
        room = width - labels - texts - 10
        grid = Table.grid(padding=(0, 1, 0, 0))
        for label, share, text in bars:
            bar = [ProgressBar(1.0, share, width=min(room, 40))] if room >= 8 else []
            percent = f"{math.floor(100 * share):3d} %"
            grid.add_row(Text(f" {label}", no_wrap=True), *bar, Text(percent, "cyan"), Text(f" {text}", no_wrap=True))
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(grid, refresh=True)

    def _epoch_header(self, score: str) -> None:
        words = [name.format(score=SCORES[score]).rjust(width) for name, width in EPOCH_COLUMNS]
        line = "".join(words[:5]) + "  " + "".join(words[5:])
        groups = "train".rjust(27) + self._validation.rjust(21)
        self.console.print()
        for text in (groups, line):
            self.console.print(Text(text, style="dim"), no_wrap=True, overflow="ellipsis", crop=True)


def rows_grid(rows: Rows, style: str = "dim") -> Table:
    """Labels in this style, and their values beside them."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=style, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(Text(label), Text(value))
    return grid


def is_plain(console: Console) -> bool:
    """Whether the output is a file or a pipe, or a terminal without cursor movements or box characters."""
    return not console.is_terminal or console.is_dumb_terminal or not console.encoding.startswith("utf")
