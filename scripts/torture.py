"""Attack the runner as accidents and people do, from a seed: `python scripts/torture.py [KIND ...] [--seed S]`.

The kinds are kill, damage, fuzz, sweep, disk, data and ranks; all of them in turn unless some are named. Runs for
--minutes, prints what was tried and what survived, and for each failure the command that shows it again. What counts as
survived is written down in scripts/tortures/survival.py. Exit code 0 if everything survived, 1 if not.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch: processes with threads fork badly
os.environ.pop("WANDB_API_KEY", None)

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

import torch
from rich.console import Console
from rich.table import Table
from tortures.attack import Attack, Templates, said
from tortures.campaign import KINDS, Tally, campaign, printable, run_one
from tortures.processes import adopt_orphans

# what a command imports on its way, so that each forked one need not
WARM = ("runner.__main__", "runner.distributed.launch", "runner.sweeps.forecast", "runner.report.report")
WARM += ("runner.results.comparison", "runner.experiment.load", "runner.experiment.builders")
WARM += ("matplotlib.pyplot", "torchvision", "wandb", "sklearn.datasets")
SECONDS_BETWEEN_LINES = 30


def main() -> None:
    """Read the arguments, attack, print."""
    arguments = _arguments()
    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(name)
    adopt_orphans()
    console = Console(highlight=False, soft_wrap=True)
    root = Path(tempfile.mkdtemp(prefix="torture-"))  # no TemporaryDirectory: it would end with the first forked child
    templates = Templates(root, arguments.deadline)
    try:
        if arguments.only is not None:
            attack = run_one(arguments.kinds[0], arguments.seed, arguments.only, templates, keep=True)
            raise SystemExit(_show(attack, console, arguments.keep))
        report, started = Progress(console).report, time.monotonic()
        tallies = campaign(
            arguments.kinds,
            arguments.seed,
            60 * arguments.minutes,
            templates,
            report=report,
            until_one_fails=arguments.first,
        )
        seconds = time.monotonic() - started
    finally:
        shutil.rmtree(root, ignore_errors=True)
    console.print(_table(tallies))
    for failure in (failure for tally in tallies.values() for failure in tally.failures):
        console.print(f"{failure.kind} {failure.number}: {failure.title}", style="bold", markup=False)
        console.print(f"  {'; '.join(failure.reasons)}\n  {failure.again}", markup=False)
    if arguments.json:
        record = {"seed": arguments.seed, "seconds": seconds, "kinds": {k: asdict(t) for k, t in tallies.items()}}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    raise SystemExit(int(any(tally.failures for tally in tallies.values())))


class Progress:
    """A line for each failure as it is found, and now and then one that says how far the campaign has come."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def report(self, attack: Attack, tallies: dict[str, Tally]) -> None:
        """Tell of an attack that has ended."""
        if attack.reasons:
            self.console.print(f"{attack.again}: {printable(attack.reasons[0])[:160]}", markup=False)
        elif time.monotonic() - self.last < SECONDS_BETWEEN_LINES:
            return
        counts = ", ".join(f"{kind} {tally.survived} of {tally.tried}" for kind, tally in tallies.items())
        self.console.print(f"survived so far: {counts}", style="dim")
        self.last = time.monotonic()


def _show(attack: Attack, console: Console, keep: Path | None) -> int:
    """All that an attack did; returns the exit code."""
    console.print(said(attack.transcript), markup=False)
    console.print(f"\n{attack.kind} {attack.number}: {printable(attack.title)}", style="bold", markup=False)
    for reason in attack.reasons:
        console.print(f"  {printable(reason)}", markup=False)
    if not attack.reasons:
        console.print("  survived")
    if attack.trace:
        console.print(attack.trace, markup=False)
    if keep:
        attack.folder.rename(keep)
    return int(bool(attack.reasons))


def _table(tallies: dict[str, Tally]) -> Table:
    table = Table("kind", "tried", "survived", "seconds", "what is done")
    for kind, tally in tallies.items():
        style = "yellow" if tally.failures else ""
        table.add_row(kind, str(tally.tried), str(tally.survived), f"{tally.seconds:.0f}", KINDS[kind], style=style)
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1], allow_abbrev=False
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=2.0, help="for all kinds together (default 2)")
    parser.add_argument("--first", action="store_true", help="end with the first failure")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one attack of one kind, with all that it printed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --only: where its folder goes")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for a command (default 60)")
    parser.add_argument("--json", type=Path, help="a file for the result")
    arguments = parser.parse_args()
    arguments.kinds = arguments.kinds or list(KINDS)
    if unknown := [kind for kind in arguments.kinds if kind not in KINDS]:
        parser.error(f"{unknown[0]}: choose among {', '.join(KINDS)}")
    if arguments.only is not None and len(arguments.kinds) != 1:
        parser.error("--only NUMBER: name one kind")
    return arguments


if __name__ == "__main__":
    main()
