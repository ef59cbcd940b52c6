"""A W&B workspace for a sweep: panels of scores, loss, throughput, divergence, clipping and probes.

Grouped by what was swept. With an account it is saved to W&B and its address printed; without one, or with --json, it
is written to a file, by default wandb_workspace.json in the sweep's folder. Exit code 2 for a wrong folder or a missing
package, 1 if W&B fails.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.files.atomic import write_atomically
from runner.files.readers import read_yaml_mapping
from runner.results.arms import arms_of
from runner.results.metrics import METRICS, SECTIONS, metric_names, read_rows
from runner.results.run_folder import probe_files
from runner.results.runs import Run, read_runs, read_sweep
from runner.tracking import workspace

EXAMPLE = "example: runner workspace outputs/sweeps/NAME"


def main(arguments: Sequence[str]) -> None:
    """Read the arguments, build the workspace, save it or write it."""
    parser = argparse.ArgumentParser("runner workspace", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep's folder")
    parser.add_argument("--project", help="the W&B project; without it the one of the runs")
    parser.add_argument("--entity", help="the W&B user or team; without it the one of the runs, or the account's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the workspace here, even with an account")
    options = parser.parse_args(arguments)
    if not workspace.is_installed():
        parser.exit(2, "wandb-workspaces is not installed. Install it with pip install '.[dashboards]'.\n")
    try:
        runs, settings = _read(options.folder)
        axes, _ = arms_of(runs, read_sweep(options.folder))
        logged = logged_by(runs)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    about = settings["wandb"]
    group = about["group"] or options.folder.resolve().name
    wanted = {
        "title": f"Sweep {group}",
        "group": group,
        "swept": [axis.key for axis in axes],
        "project": options.project or about["project"],
    }
    entity = options.entity or about["entity"]
    failure = None
    if options.json is None and workspace.has_account():
        try:
            entity = entity or workspace.default_entity()
            print(workspace.save(workspace.build_workspace(logged, **wanted, entity=entity)))
            return
        except Exception as error:  # W&B's errors have no base in common
            reason = next(iter(str(error).strip().splitlines()), "no reason given")[:160]
            failure = f"W&B could not save the workspace ({type(error).__name__}: {reason})."
            print(failure, file=sys.stderr)
    file = options.json or options.folder / "wandb_workspace.json"
    write_atomically(file, workspace.as_json(workspace.build_workspace(logged, **wanted, entity=entity or "")))
    print(f"written to {file}")
    print("to save it in W&B, send it the runs and make the workspace again:")
    for command in _how_to_save(options.folder, settings, arguments):
        print(f"  {command}")
    raise SystemExit(1 if failure else 0)


def _read(folder: Path) -> tuple[list[Run], dict]:
    """The runs of a sweep, and the settings of the first that has any. Raises ValueError for any other folder."""
    runs = read_runs([folder])
    files = [run.folder / "config.yaml" for run in runs if run.folder != folder]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"{folder}: no runs of a sweep lie there. Name a sweep's folder, as outputs/sweeps/NAME.")
    return runs, read_yaml_mapping(files[0])


def logged_by(runs: Sequence[Run]) -> workspace.Logged:
    """What the runs put into W&B, as their folders tell it. Raises ValueError for a metrics file that was changed."""
    logged = workspace.Logged()
    for run in runs:
        for row in read_rows(run.folder) if (run.folder / METRICS).is_file() else []:
            logged.names.update(metric_names(row).values())
            if row["split"] == "probe":
                logged.moments.add(row["step"])
        for part in ("test", "validation", "throughput"):
            logged.names.update(f"{part}/{key}" for key in run.section(SECTIONS.get(part, part)))
        logged.pictures.update(file.probe for file in probe_files(run.folder, "png"))
    return logged


def _how_to_save(folder: Path, settings: dict, arguments: Sequence[str]) -> list[str]:
    """The commands that bring offline runs and this workspace to W&B."""
    outputs = shlex.quote(f"{settings['paths']['outputs']}/wandb")
    words, skip = [], False
    for word in arguments:
        if not skip and not word.startswith("--json"):
            words.append(word)
        skip = word == "--json"
    again = shlex.join(["python", "-m", "runner", "workspace", *words])
    return ["wandb login", f"wandb sync {outputs}/offline-run-*", again]
