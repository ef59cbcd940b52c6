"""A report of a sweep or of any runs: `python scripts/report.py FOLDER... [--into FOLDER]`.

Writes report.html, report.md, results.csv and figures into the folder of the sweep, or, for several folders or single
runs, into --into (outputs/reports/NAME if not given). Exit code 2 for a folder that is not there or holds no run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

from runner.files.atomic import CannotWrite
from runner.files.readers import is_there
from runner.report.report import write_report
from runner.results.runs import MARKS

LONGEST_NAME = 120


def main() -> None:
    """Read the arguments, write the report, say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep's or a run's folder")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where the report goes")
    arguments = parser.parse_args()
    try:
        print(write_report(arguments.folders, into=arguments.into or default_folder(arguments.folders)))
    except (ValueError, CannotWrite) as error:
        print(f"No report. {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ValueError) else 1) from None


def default_folder(folders: Sequence[Path]) -> Path:
    """The sweep's own folder, or outputs/reports/<the folders' names>."""
    if len(folders) == 1 and not any(is_there(folders[0] / mark) for mark in MARKS):
        return folders[0]
    return Path("outputs/reports") / "+".join(folder.resolve().name for folder in folders)[:LONGEST_NAME]


if __name__ == "__main__":
    main()
