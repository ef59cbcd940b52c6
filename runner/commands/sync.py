"""Upload to W&B what a run, or every run of a sweep, has recorded offline. It needs an account there.

NAME is the folder of a run or of a sweep, or its name under outputs/runs or outputs/sweeps. Exit code 2 where nothing
was recorded, and without an API key.
"""

from __future__ import annotations

import argparse
import glob
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.results.runs import Run, read_runs

EXAMPLE = "example: runner sync digits-resnet18-batchnorm"
PLACES = ("", "outputs/runs", "outputs/sweeps")
NO_KEY = "W&B has no API key of yours: `wandb login` asks for one, from an account there."


def main(arguments: Sequence[str]) -> None:
    """Read the arguments, find what W&B recorded, have it uploaded."""
    parser = argparse.ArgumentParser("runner sync", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("name", metavar="NAME", help="a run or a sweep")
    name = parser.parse_args(arguments).name
    folder = next((path for place in PLACES if (path := Path(place, name)).is_dir()), Path(name))
    try:
        records = [record for run in read_runs([folder]) for record in offline_records(run)]
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if not records:
        parser.exit(2, f"{folder}: no run of it was recorded offline (wandb.mode=offline).\n")
    if not has_key():
        parser.exit(2, f"{NO_KEY}\n")
    raise SystemExit(subprocess.call([sys.executable, "-m", "wandb", "sync", *map(str, records)]))


def offline_records(run: Run) -> list[Path]:
    """The folders in which W&B recorded the run, one for each time that it went on."""
    run_id = run.summary.get("wandb_id")
    if not run_id:
        return []
    outputs = run.folder.resolve().parents[1:3]  # of a run, and of a job of a sweep
    pattern = f"wandb/offline-run-*-{glob.escape(str(run_id))}"
    return sorted(path for folder in outputs for path in folder.glob(pattern))


def has_key() -> bool:
    """Whether W&B has an API key, in the environment or stored by `wandb login`; asks for none."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))
