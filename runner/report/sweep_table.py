"""The table on the terminal at the end of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.report.arm_table import BEST_SIGN, arm_table
from runner.report.console_table import WIDTH, console_table, print_table, varied_overrides
from runner.results.arms import arms_of, common_overrides
from runner.results.metrics import SCORES
from runner.results.number_text import format_number, format_share
from runner.results.run_state import RUNNING
from runner.results.runs import Run, SweepRecord, score_title
from runner.tracking.console import STATUS_STYLES, is_plain
from runner.tracking.terminal import ascii_line, terminal

LONGEST_ERROR = 160
ON_TEST = "(test): chosen on the test split, which stands in for validation"


def best_job(runs: Sequence[Run]) -> Run | None:
    """The completed job with the best validation score; of equals the one with the smaller loss, then the first.

    None if the test split stands in for validation in some jobs only: their scores cannot be compared.
    """
    rivals = [run for run in runs if run.status == "completed" and run.number("validation/score") is not None]
    if len({run.on_test for run in rivals}) > 1:
        return None

    def quality(run: Run) -> tuple[float, float]:
        loss = run.number("validation/loss")
        return run.number("validation/score"), -math.inf if loss is None else -loss

    return max(rivals, key=quality, default=None)


def sweep_table(runs: Sequence[Run], *, title: str = "Sweep", plain: bool = False) -> Table:
    """A row for each job: the overrides that differ between jobs, status, scores and speed; the best row has a `*`.

    The caption has the overrides that all jobs share, and the full keys of shortened ones. A failed or diverged job
    has no scores; a number that no job has gets no column. `plain` makes a table of ASCII.
    """
    table = console_table(title, plain=plain)
    score = next((SCORES[run.score] for run in runs if run.summary), "accuracy")
    table.add_column("", width=1)
    table.add_column("overrides", overflow="fold", no_wrap=plain)
    table.add_column("status", no_wrap=True)
    numbers = {f"best val. {score}": _best, f"test {score}": _test, "images/s": _speed}
    numbers = {heading: text for heading, text in numbers.items() if any(map(text, runs))}
    for heading in numbers:
        heading = heading if plain else heading.replace(f" {score}", f"\n{score}")
        table.add_column(heading, justify="right", no_wrap=True)
    best, common = best_job(runs), common_overrides(runs)
    texts, keys = varied_overrides([run.overrides for run in runs], common, plain=plain)
    for run, overrides in zip(runs, texts, strict=True):
        style = "bold" if run is best else ""
        table.add_row(
            Text("*" if run is best else "", "bold green"),
            Text(overrides or run.folder.name, style),
            Text(run.status, STATUS_STYLES.get(run.status, "bold red")),
            *(Text(text(run) or "-", "" if text is _speed else style) for text in numbers.values()),
        )
    if not plain:
        notes = [f"varied: {', '.join(keys)}"] if keys else []
        notes += [f"in common: {' '.join(common)}"] if common else []
        notes += [f"* best on the {'test' if best.on_test else 'validation'} split"] if best else []
        notes += [ON_TEST] if _on_test(runs) else []
        table.caption = Text("\n".join(notes))
    return table


def print_sweep(
    runs: Sequence[Run], *, title: str = "Sweep", sweep: SweepRecord | None = None, console: Console | None = None
) -> None:
    """Print the table of a sweep, then the error of each job that has one, with the job's folder.

    Jobs that differ in their seed alone are averaged in a second table, with the axes and measures of the sweep's
    record.
    """
    console = console or terminal()
    plain = is_plain(console)
    console.print()
    print_table(console, sweep_table(runs, title=title, plain=plain))
    if plain:
        if common := common_overrides(runs):
            console.print(Text(f"in common: {' '.join(common)}"), soft_wrap=True)
        if _on_test(runs):
            console.print(Text(ON_TEST), soft_wrap=True)
    if any(len(arm.runs) > 1 for arm in arms_of(runs, sweep)[1]):
        _print_arms(runs, sweep or SweepRecord(), console, plain)
    for run in runs:
        if run.error and run.status != RUNNING:
            status = (f"{run.status}  ", STATUS_STYLES.get(run.status, "bold red"))
            between = ": " if plain else "\n" + " " * (len(run.status) + 2)
            console.print(Text.assemble(status, f"{run.folder}{between}{_short(run.error)}"), soft_wrap=True)
    console.print()


def _print_arms(runs: Sequence[Run], sweep: SweepRecord, console: Console, plain: bool) -> None:
    """Print the means over the seeds as the report has them, at most 80 columns wide on a terminal."""

    def text(cell: object) -> str:
        return ascii_line(str(cell).replace("±", "+-").replace(BEST_SIGN, "*")) if plain else str(cell)

    content = arm_table(*arms_of(runs, sweep), sweep.measures, score_title(runs))
    table = console_table("Over the seeds", plain=plain)
    table.caption = None if plain else Text(content.caption, "dim")
    for number, name in enumerate(content.columns):
        justify = "right" if number in content.numeric else "left"
        table.add_column(text(name), justify=justify, no_wrap=plain, overflow="fold")
    for row in content.rows:
        table.add_row(*(Text(text(cell)) for cell in row))
    print_table(console, table, WIDTH)
    if plain:
        console.print(Text(text(content.caption)), soft_wrap=True)


def _best(run: Run) -> str:
    """The best validation score, marked if it is the test split's; empty without one."""
    text = _share(run, "validation/score")
    return f"{text} (test)" if text and run.on_test else text


def _test(run: Run) -> str:
    return _share(run, "test/score")


def _share(run: Run, name: str) -> str:
    share = run.number(name) if run.status in ("completed", "interrupted") else None
    return "" if share is None else format_share(share)


def _speed(run: Run) -> str:
    speed = run.number("throughput/images_per_second")
    return "" if speed is None else format_number(speed, 0)


def _on_test(runs: Sequence[Run]) -> bool:
    return any(run.on_test and run.number("validation/score") is not None for run in runs)


def _short(error: str) -> str:
    line = next((line.strip() for line in error.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 3] + "..."
