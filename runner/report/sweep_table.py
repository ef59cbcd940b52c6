"""The table on the terminal at the end of a sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from runner.report.arm_table import BEST_SIGN, arm_table
from runner.report.console_table import add_columns, console_table, print_table
from runner.results.arms import arms_of, common_overrides
from runner.results.run_state import RUNNING, TO_DO
from runner.results.runs import Run, SweepRecord, score_title
from runner.tracking.console import STATUS_STYLES, is_plain
from runner.tracking.terminal import ascii_line, terminal

LONGEST_ERROR = 160
MOST_TO_DO = 5  # jobs that are named


def print_sweep(
    runs: Sequence[Run],
    *,
    title: str = "Sweep",
    sweep: SweepRecord | None = None,
    to_do: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print a row for each arm, then a line for each job with an error, and the jobs that are `to_do`.

    The rows are those of the report's table of arms, with the axes and measures of the sweep's record. The best one is
    marked.
    """
    console = console or terminal()
    plain = is_plain(console)
    console.print()
    console.print(Text(title, "bold"), soft_wrap=True)
    _print_arms(runs, sweep or SweepRecord(), console, plain)
    failed = [run for run in runs if run.error and run.status != RUNNING]
    if failed or to_do:
        console.print()
    for run in failed:
        _print_line(console, run.status, run.folder.name, _short(run.error))
    for name in to_do[:MOST_TO_DO]:
        _print_line(console, TO_DO, name)
    if len(to_do) > MOST_TO_DO:
        console.print(Text(f"and {len(to_do) - MOST_TO_DO:,} more jobs to do"))
    console.print()


def _print_arms(runs: Sequence[Run], sweep: SweepRecord, console: Console, plain: bool) -> None:
    def printable(text: str) -> str:
        return ascii_line(text.replace("±", "+-").replace(BEST_SIGN, "*")) if plain else text

    content = arm_table(*arms_of(runs, sweep), sweep.measures, score_title(runs))
    names = content.full_names if plain else {}
    columns: dict[str, list[Text]] = {}
    settings = {printable(names.get(number, content.columns[number])) for number in content.full_names}
    for number, name in enumerate(content.columns):
        cells = [str(row[number]) for row in content.rows]
        if not _says_nothing(name, cells):
            columns[printable(names.get(number, name))] = [Text(printable(cell)) for cell in cells]
    for row, (mark, *_) in enumerate(content.rows):
        for cells in columns.values():
            cells[row].stylize("bold" if mark else "")
    table = console_table(plain=plain)
    numeric = {printable(names.get(number, content.columns[number])) for number in content.numeric}
    add_columns(table, columns, numeric=numeric, uncut=columns.keys() - settings, plain=plain)
    common = common_overrides(runs)
    short = [full for number, full in content.full_names.items() if full != content.columns[number]]
    notes = [f"columns: {', '.join(short)}"] if short and not plain else []
    notes += [f"in common: {' '.join(common)}"] if common else []
    notes += [content.caption] if content.caption else []
    print_table(console, table)
    for note in notes:
        console.print(Text(printable(note), "" if plain else "dim"), soft_wrap=plain)


def _says_nothing(name: str, cells: Sequence[str]) -> bool:
    """Whether a column needs no room: one run an arm, no status but "completed", no best arm."""
    if name == "status":
        return all(re.fullmatch(r"([\d,]+ )?completed", cell) for cell in cells)
    return (name == "runs" and {*cells} <= {"1"}) or (name == "" and not any(cells))


def _print_line(console: Console, status: str, name: str, reason: str = "") -> None:
    """A job on one line, or with the reason on the next one where the terminal has too little room."""
    between = ": " if reason else ""
    if not is_plain(console) and len(f"{status}  {name}{between}{reason}") > console.width:
        between = "\n" + " " * (len(status) + 2)
    style = STATUS_STYLES.get(status, "bold" if status == TO_DO else "bold red")
    console.print(Text.assemble((f"{status}  ", style), f"{name}{between}{reason}"), soft_wrap=True)


def _short(error: str) -> str:
    line = next((line.strip() for line in error.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 3] + "..."
