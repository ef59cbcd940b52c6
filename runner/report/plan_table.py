"""The table of `python -m runner plan`: what would run, and for how long."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from runner.report.console_table import add_columns, console_table, print_table, varied_settings
from runner.results.number_text import format_duration
from runner.results.run_state import RESULTS
from runner.tracking.console import STATUS_STYLES, is_plain
from runner.tracking.terminal import terminal

SLOW_SECONDS = 10  # the plan mentions steps that take longer


@dataclass(frozen=True)
class PlannedRun:
    """A run that may start or resume: its `status` as in runner.results.run_state, and a `text` with details.

    `seconds` is the estimated time left and `per_step` the time of a step; `source` says where the estimate is from.
    All three are empty for a finished run and for an unknown time.
    """

    overrides: tuple[str, ...]
    status: str
    text: str
    seconds: float | None = None
    per_step: float | None = None
    source: str = ""


def print_plan(
    runs: Sequence[PlannedRun],
    *,
    title: str,
    notes: Mapping[str, str],
    at_once: int = 1,
    console: Console | None = None,
) -> None:
    """Print the runs, how many there are of each status and the total time.

    `notes` explains each source of an estimate; so many runs are at work `at_once`. Without a terminal a run is a line
    of ASCII.
    """
    console = console or terminal()
    plain = is_plain(console)
    common = [word for word in runs[0].overrides if len(runs) > 1 and all(word in run.overrides for run in runs)]
    names, settings = varied_settings([run.overrides for run in runs], common)
    columns = {key if plain else names[key]: [Text(values.get(key, "-")) for values in settings] for key in names}
    columns["state"] = [
        Text(run.text, STATUS_STYLES.get(run.status, "bold" if run.status == "running" else "")) for run in runs
    ]
    columns["time left"] = [Text(_time_left(run)) for run in runs]
    columns["estimate"] = [Text(run.source or "-") for run in runs]
    console.print(Text(title, "bold"), soft_wrap=True)
    table = console_table(plain=plain)
    add_columns(table, columns, numeric={"time left"}, uncut={"time left"}, plain=plain)
    keys = [key for key, name in names.items() if key != name and not plain]
    print_table(console, table)
    for line in _lines(runs, keys, common, notes, at_once):
        console.print(Text(line, "" if plain else "dim"), soft_wrap=plain)


def _lines(
    runs: Sequence[PlannedRun], keys: Sequence[str], common: Sequence[str], notes: Mapping[str, str], at_once: int
) -> list[str]:
    counts = Counter(run.status for run in runs)
    would = [run for run in runs if run.seconds is not None and run.status != "running"]
    lines = [f"{len(runs)} jobs: {', '.join(f'{number} {status}' for status, number in counts.items())}"] * (
        len(runs) > 1
    )
    if would:
        how = "one after the other" if at_once == 1 else f"{at_once} at once"
        lines.append(f"Time left in all, {how}: {_duration(time_of([run.seconds for run in would], at_once))}")
    lines += [f"{source}: {notes[source]}" for source in dict.fromkeys(run.source for run in runs if run.source)]
    slowest = max((run.per_step or 0 for run in runs), default=0)
    lines += [f"A step takes up to {slowest:.0f} s."] * (slowest > SLOW_SECONDS)
    lines += [f"columns: {', '.join(keys)}"] if keys else []
    return lines + ([f"in common: {' '.join(common)}"] if common else [])


def _time_left(run: PlannedRun) -> str:
    if run.status in RESULTS or run.text.endswith("left so"):
        return "-"
    return "not known" if run.seconds is None else _duration(run.seconds)


def time_of(seconds: Sequence[float], at_once: int) -> float:
    """The time of runs of so many seconds each, the next one begun whenever one of those `at_once` at work ends."""
    ends = [0.0] * at_once
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)
