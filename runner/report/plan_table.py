"""The table of `python -m runner plan`: what would run, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from runner.report.console_table import console_table
from runner.results.arms import last_parts
from runner.results.number_text import format_duration
from runner.results.run_state import RESULTS
from runner.tracking.console import STATUS_STYLES, is_plain
from runner.tracking.terminal import terminal

WIDTH = 80
SLOW_SECONDS = 10  # a step of which the plan speaks


@dataclass(frozen=True)
class PlannedRun:
    """A run that may be begun or gone on with: `status` as in runner.results.run_state, `text` with what goes with it.

    `seconds` is the time that it takes still, and `per_step` that of a step, as far as known; `source` is where
    that is from. A run without is done, or its time is not known.
    """

    overrides: tuple[str, ...]
    status: str
    text: str
    seconds: float | None = None
    per_step: float | None = None
    source: str = ""


def print_plan(
    runs: Sequence[PlannedRun], *, title: str, notes: Mapping[str, str], console: Console | None = None
) -> None:
    """Print the runs, then how many there are of each kind and the time in all; at most 80 columns on a terminal.

    `notes` explains each source of an estimate. Where the output is no terminal a run is a line of ASCII.
    """
    console = console or terminal()
    plain = is_plain(console)
    common = [word for word in runs[0].overrides if len(runs) > 1 and all(word in run.overrides for run in runs)]
    own = [[word for word in run.overrides if word not in common] for run in runs]
    keys = list(dict.fromkeys(word.partition("=")[0] for words in own for word in words))
    short = keys if plain else last_parts(keys)
    table = console_table(title, plain=plain)
    table.add_column("overrides", overflow="fold", no_wrap=plain)
    table.add_column("state", no_wrap=plain)
    table.add_column("time left", justify="right", no_wrap=True)
    table.add_column("estimate", no_wrap=plain)
    for run, words in zip(runs, own, strict=True):
        shown = [short[keys.index(key)] + word[len(key) :] for word in words for key in [word.partition("=")[0]]]
        done = run.status in RESULTS or run.text.endswith("left so")
        time = "-" if done else "not known" if run.seconds is None else _duration(run.seconds)
        status = Text(run.text, STATUS_STYLES.get(run.status, "bold" if run.status == "running" else ""))
        table.add_row(Text((" " if plain else "\n").join(shown) or "-"), status, time, run.source or "-")
    (terminal(file=console.file, width=10_000) if plain else console).print(
        table, width=None if plain else _width(console)
    )
    for line in _lines(runs, keys if keys != short else [], common, notes):
        console.print(Text(line, "" if plain else "dim"), soft_wrap=plain, width=None if plain else _width(console))


def _lines(
    runs: Sequence[PlannedRun], keys: Sequence[str], common: Sequence[str], notes: Mapping[str, str]
) -> list[str]:
    counts = Counter(run.status for run in runs)
    would = [run for run in runs if run.seconds is not None and run.status != "running"]
    lines = [f"{len(runs)} jobs: {', '.join(f'{number} {status}' for status, number in counts.items())}"] * (
        len(runs) > 1
    )
    if would:
        lines.append(f"Time left in all, one after the other: {_duration(sum(run.seconds for run in would))}")
    lines += [f"{source}: {notes[source]}" for source in dict.fromkeys(run.source for run in runs if run.source)]
    slowest = max((run.per_step or 0 for run in runs), default=0)
    lines += [f"A step takes up to {slowest:.0f} s."] * (slowest > SLOW_SECONDS)
    lines += [f"varied: {', '.join(keys)}"] if keys else []
    return lines + ([f"in common: {' '.join(common)}"] if common else [])


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)


def _width(console: Console) -> int:
    return min(console.width, WIDTH)
