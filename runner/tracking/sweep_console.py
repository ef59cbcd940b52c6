"""The output of a sweep: a line for each job as it ends, and what runs now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runner.results.job import Job
from runner.results.metrics import SCORES, score_of, section, summary_number
from runner.results.number_text import format_duration, format_share
from runner.results.run_state import FAILED, RESULTS, RUNNING, RunState
from runner.tracking.console import STATUS_STYLES, WIDEST, RunConsole, is_plain
from runner.tracking.pace import Pace
from runner.tracking.terminal import terminal

WIDTHS = {"status": 11, "result": 20, "time": 8}  # columns of a job's line; its name has the rest
LONGEST_BAR, LONGEST_LABEL = 40, 20  # of the live display


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: its jobs at work with the share of each that is done, and the share and time of all.

    `done` of `total` jobs have ended. `seconds_left` is None where nothing tells it yet. `detail` says more of the only
    job at work.
    """

    running: Sequence[tuple[str, float]]
    done: int
    total: int
    share: float
    seconds_left: float | None
    detail: str = ""


class SweepConsole:
    """Shows the jobs of a sweep; what each of them prints is in its folder.

    On a terminal: an aligned line for each job as it ends, and below them a live display of those at work. Elsewhere:
    one line of ASCII for each event. `labels` are the short names of the jobs on a terminal, by the names of their
    folders. One thread at a time calls its methods. Where jobs run one after the other, `pace` has their work; a copy
    may go to another process.
    """

    def __init__(self, labels: Mapping[str, str], pace: Pace | None = None, *, console: Console | None = None) -> None:
        self.console = console or terminal()
        self.plain = is_plain(self.console)
        self.pace = pace or Pace({})
        self._labels = labels
        self._live: Live | None = None
        self._done = self._failed = 0
        self._best: tuple[float, str] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "console": None, "_live": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, console=terminal())

    def label(self, job: Job) -> str:
        """The name of a job as it is shown."""
        return job.name if self.plain else self._labels.get(job.name) or job.name

    def running(self, job: Job, where: str = "") -> None:
        """Say that a job runs; on a terminal the live display shows it, unless it runs elsewhere."""
        if self.plain:
            self._plain_line(job, f"running {where}" if where else "runs")
        elif where:
            self._line("", job, f"running {where}", "", "")

    def at_work(self, job: Job, step: int, what: str) -> None:
        """Show the only job at work on the live display: the step that it has come to, and what it does."""
        self.pace.note(job.name, RunState(RUNNING, step))
        running = [(self.label(job), self.pace.shares.get(job.name, 0.0))]
        self.progress(Progress(running, self._done, job.total, *self.pace.read(), what))

    def ended(self, job: Job, state: RunState, *, seconds: float | None, done: int | None = None) -> None:
        """Show what came of a job; `done` jobs have ended so far. `seconds` is None if that was before this sweep."""
        self._count(job, state)
        done = self._done if done is None else done
        if self.plain:
            after = "before" if seconds is None else f" {format_duration(seconds)}  {done}/{job.total} done"
            self._plain_line(job, f"{state.text} {after}")
            return
        status, _, result = state.text.partition(", ")
        time = "before" if seconds is None else format_duration(seconds)
        self._line(f"{done}/{job.total}", job, status, result, time)

    def _count(self, job: Job, state: RunState) -> None:
        self.pace.note(job.name, state)
        self._done += state.status in (*RESULTS, FAILED)
        self._failed += state.status == FAILED
        score = score_of(section(state.summary, "best"))
        share = summary_number(state.summary, f"validation/{score}")
        if state.status == "completed" and share is not None and (self._best is None or share > self._best[0]):
            self._best = share, f"best validation {SCORES[score]} {format_share(share)}: {self.label(job)}"

    def message(self, text: str, kind: str = "note") -> None:
        """Show a note, a warning or an error."""
        RunConsole(console=self.console).message(text, kind)

    def progress(self, progress: Progress) -> None:
        """Update the live display of a terminal."""
        if self.plain:
            return
        width = min(self.console.width, WIDEST) - 3  # a terminal's ^C must not start a new line
        left = f"{format_duration(progress.seconds_left)} left"
        head = f" {progress.done}/{progress.total} done"
        room = min(width - len(head) - len(left) - 8, LONGEST_BAR)
        grid = Table.grid(padding=(0, 1, 0, 0))
        bar = [ProgressBar(1.0, progress.share, width=room)] if room >= 8 else []
        grid.add_row(Text(head, "cyan", no_wrap=True), *bar, f"{math.floor(100 * progress.share):3d} %", left)
        facts = [f"{self._failed} failed"] * (self._failed > 0) + ([self._best[1]] if self._best else [])
        lines = [f" {', '.join(facts)}"] if facts else []
        lines.append(_running_line(progress.running, width, progress.detail))
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        texts = (Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in lines)
        self._live.update(Padding(Group(grid, *texts), (0, self.console.width - width, 0, 0)), refresh=True)

    def stop(self) -> None:
        """Remove the live display, if there is one; printed lines stay."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _plain_line(self, job: Job, what: str) -> None:
        self.console.print(Text(f"job {job.number}/{job.total}: {job.name}  {what}"), soft_wrap=True)
        self.console.file.flush()

    def _line(self, count: str, job: Job, status: str, result: str, time: str) -> None:
        width = min(self.console.width, WIDEST)
        first = 2 * len(str(job.total)) + 2
        room = max(width - first - sum(WIDTHS.values()) - 8, 10)
        label = set_cell_size(_ending(self.label(job), room), room)
        cells = [
            (count.rjust(first), "cyan"),
            label,
            (status.ljust(WIDTHS["status"]), STATUS_STYLES.get(status, "bold")),
        ]
        cells += [result.ljust(WIDTHS["result"]), (time.rjust(WIDTHS["time"]), "dim")]
        self.console.print(Text("  ").join(Text.assemble(cell) for cell in cells), no_wrap=True, crop=True)


def _running_line(running: Sequence[tuple[str, float]], width: int, detail: str = "") -> str:
    """As many of the jobs at work as have room, and how many more there are; of a single one the detail."""
    if detail and len(running) == 1:
        rest = f" {math.floor(100 * running[0][1])} %, {detail}"
        return f" running: {_ending(running[0][0], max(width - 10 - cell_len(rest), LONGEST_LABEL))}{rest}"
    texts = [f"{_ending(label, LONGEST_LABEL)} {math.floor(100 * share)} %" for label, share in running]
    for shown in range(len(texts), 0, -1):
        more = f", and {len(texts) - shown} more" if shown < len(texts) else ""
        line = f" running: {', '.join(texts[:shown])}{more}"
        if cell_len(line) <= width:
            return line
    return f" running: {len(texts)} jobs" if texts else " no job is running yet"


def _ending(label: str, room: int) -> str:
    """A job's label, or as much of its end as has room: a seed comes last."""
    if cell_len(label) <= room:
        return label
    while cell_len(label) >= room:
        label = label[1:]
    return f"…{label}"
