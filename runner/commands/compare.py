"""What differs between runs: settings, code, results and learning curves, each run against the first.

Exit code 0 whether or not they differ, 2 for a folder without a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runner.report.comparison_table import print_comparison
from runner.results.comparison import compare

EXAMPLE = "example: runner compare outputs/runs/A outputs/runs/B"


def main(arguments: Sequence[str]) -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser("runner compare", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs' folders, two or more")
    options = parser.parse_args(arguments)
    try:
        comparison = compare(options.folders)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print_comparison(comparison)
