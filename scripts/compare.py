"""What differs between runs: `python scripts/compare.py outputs/runs/A outputs/runs/B [C ...]`.

Settings, code, results and learning curves, each run against the first. Exit code 0 whether or not they differ, 2 for a
folder without a run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

from runner.report.comparison_table import print_comparison
from runner.results.comparison import compare


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs' folders, two or more")
    arguments = parser.parse_args()
    try:
        found = compare(arguments.folders)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print_comparison(found)


if __name__ == "__main__":
    main()
