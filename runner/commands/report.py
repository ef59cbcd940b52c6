"""A report of a sweep or of any runs: report.html, report.md, results.csv and figures.

It goes into the folder of the sweep or, for several folders or single runs, into --into (outputs/reports/NAME if not
given). Exit code 2 for a folder that is not there or holds no run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.files.atomic import CannotWrite
from runner.report.report import read_report
from runner.results.runs import holds_run

EXAMPLE = "example: runner report outputs/sweeps/NAME"
LONGEST_NAME = 120


def main(arguments: Sequence[str]) -> None:
    """Read the arguments, write the report, say where it lies."""
    parser = argparse.ArgumentParser("runner report", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep's or a run's folder")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where the report goes")
    options = parser.parse_args(arguments)
    try:
        print(read_report(options.folders, into=options.into or default_folder(options.folders)).write())
    except (ValueError, CannotWrite) as error:
        print(f"No report. {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ValueError) else 1) from None


def default_folder(folders: Sequence[Path]) -> Path:
    """The sweep's own folder, or outputs/reports/<the folders' names>."""
    if len(folders) == 1 and not holds_run(folders[0]):
        return folders[0]
    return Path("outputs/reports") / "+".join(folder.resolve().name for folder in folders)[:LONGEST_NAME]
