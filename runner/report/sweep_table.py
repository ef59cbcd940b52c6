"""The table on the terminal at the end of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.report.arm_table import BEST, arm_table
from runner.report.console_table import console_table
from runner.results.arms import arms_of, common_overrides, last_parts
from runner.results.metrics import SCORES
from runner.results.number_text import format_number, format_share
from runner.results.run_state import RUNNING
from runner.results.runs import Run, SweepRecord
from runner.tracking.console import STATUS_STYLES, is_plain
from runner.tracking.terminal import terminal

LONGEST_ERROR = 160
WIDTH = 80  # of the table over the seeds
NONE = format_share(None)


def best_job(runs: Sequence[Run]) -> Run | None:
    """The completed job with the best validation metric, of equals the one with the smaller loss, then the first.

    None where some were chosen on the test split and others were not: these cannot be compared.
    """
    rivals = [run for run in runs if run.status == "completed" and run.number("validation/score") is not None]
    if len({run.on_test for run in rivals}) > 1:
        return None

    def quality(run: Run) -> tuple[float, float]:
        loss = run.number("validation/loss")
        return run.number("validation/score"), -math.inf if loss is None else -loss

    return max(rivals, key=quality, default=None)


def sweep_table(runs: Sequence[Run], *, title: str = "Sweep", plain: bool = False) -> Table:
    """One row a job: the overrides that differ between the jobs, status, metrics and speed; the best row has a `*`.

    What all jobs have in common is in the caption, and so are the full keys where a key is shortened to its last
    part. A failed or diverged job has no metrics here; a number that no job has is no column. `plain` makes a table
    of ASCII with one line a run.
    """
    table = console_table(title, plain=plain)
    score = next((SCORES[run.score] for run in runs if run.summary), "accuracy")
    table.add_column("", width=1)
    table.add_column("overrides", overflow="fold", no_wrap=plain)
    table.add_column("status", no_wrap=True)
    numbers = {f"best val. {score}": _best, f"test {score}": _test, "images/s": _speed}
    numbers = {heading: shown for heading, shown in numbers.items() if any(map(shown, runs))}
    for heading in numbers:
        table.add_column(
            heading if plain else heading.replace(f" {score}", f"\n{score}"), justify="right", no_wrap=True
        )
    best, common = best_job(runs), common_overrides(runs)
    own = [[override for override in run.overrides if override not in common] for run in runs]
    keys = list(dict.fromkeys(_key(override) for overrides in own for override in overrides))
    short = keys if plain else last_parts(keys)
    for run, overrides in zip(runs, own, strict=True):
        style = "bold" if run is best else ""
        cells = [short[keys.index(_key(override))] + override[len(_key(override)) :] for override in overrides]
        table.add_row(
            Text("*" if run is best else "", "bold green"),
            Text((" " if plain else "\n").join(cells) or run.folder.name, style),
            Text(run.status, STATUS_STYLES.get(run.status, "bold red")),
            *(Text(shown(run) or NONE, "" if shown is _speed else style) for shown in numbers.values()),
        )
    if not plain:
        notes = [f"varied: {', '.join(keys)}"] if keys != short else []
        notes += [f"in common: {' '.join(common)}"] if common else []
        notes += [f"* best on the {'test' if best.on_test else 'validation'} split"] if best else []
        notes += ["(test): chosen on the test split, which stands in for validation"] if _on_test(runs) else []
        table.caption = Text("\n".join(notes))
    return table


def print_sweep(
    runs: Sequence[Run], *, title: str = "Sweep", sweep: SweepRecord | None = None, console: Console | None = None
) -> None:
    """Print the table of a sweep, then the error of each job that has one, with the job's folder.

    Where jobs differ in their seed alone, a table of their means and standard deviations stands between, with what
    the sweep's record says of its axes and measures. Where the output is no terminal a table has one line a row,
    however wide.
    """
    console = console or terminal()
    plain = is_plain(console)
    table = sweep_table(runs, title=title, plain=plain)
    console.print()
    if plain:
        terminal(file=console.file, width=10_000).print(table)
        if common := common_overrides(runs):
            console.print(Text(f"in common: {' '.join(common)}"), soft_wrap=True)
        if _on_test(runs):
            console.print(Text("(test): chosen on the test split, which stands in for validation"), soft_wrap=True)
    else:
        console.print(table)
    if any(len(arm.runs) > 1 for arm in arms_of(runs, sweep)[1]):
        _print_arms(runs, sweep or SweepRecord(), console, plain)
    for run in runs:
        if run.error and run.status != RUNNING:
            status = (f"{run.status}  ", STATUS_STYLES.get(run.status, "bold red"))
            between = ": " if plain else "\n" + " " * (len(run.status) + 2)
            console.print(Text.assemble(status, f"{run.folder}{between}{_short(run.error)}"), soft_wrap=True)
    console.print()


def _print_arms(runs: Sequence[Run], sweep: SweepRecord, console: Console, plain: bool) -> None:
    """The arms' means over the seeds, as the report has them; the widest columns are folded on a terminal."""
    axes, arms = arms_of(runs, sweep)
    scores = {run.score for run in runs if run.summary}
    found = arm_table(axes, arms, sweep.measures, SCORES[scores.pop()] if len(scores) == 1 else "score")
    table = console_table("Over the seeds", plain=plain)
    table.caption = None if plain else Text(found.caption, "dim")
    for number, name in enumerate(found.columns):
        justify = "right" if number in found.numeric else "left"
        table.add_column(_ascii(name) if plain else name, justify=justify, no_wrap=plain, overflow="fold")
    for row in found.rows:
        table.add_row(*(Text(_ascii(str(cell)) if plain else str(cell)) for cell in row))
    if plain:
        terminal(file=console.file, width=10_000).print(table)
        console.print(Text(_ascii(found.caption)), soft_wrap=True)
    else:
        console.print(table, width=min(console.width, WIDTH))


def _ascii(text: str) -> str:
    """Text of the report without the signs beyond ASCII that it has."""
    for sign, word in (("±", "+-"), (BEST, "*")):
        text = text.replace(sign, word)
    return text.encode("ascii", "backslashreplace").decode()


def _best(run: Run) -> str:
    """The best validation score, marked where it is the test split's; empty without one."""
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


def _key(override: str) -> str:
    return override.partition("=")[0]


def _short(error: str) -> str:
    line = next((line.strip() for line in error.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 3] + "..."
