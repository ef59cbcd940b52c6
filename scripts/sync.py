"""`runner sync`, without an installation: `python scripts/sync.py ...`."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

from runner.commands.sync import main

if __name__ == "__main__":
    main(sys.argv[1:])
