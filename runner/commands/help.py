"""`runner --help`: how to run, the subcommands, and every group with its options."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from runner.commands import SUBCOMMANDS
from runner.config.extensions import add_search_path, search_folders
from runner.config.options import LIST_GROUPS

HOW_TO_RUN = """\
Usage: runner [GROUP=OPTION | KEY=VALUE] ...     one run
       runner -m KEY=VALUE,VALUE,... ...         a sweep: every combination
       runner SUBCOMMAND ...

Experiments on normalization and regularization in residual networks.
`python -m runner` is the same.

Examples:
  runner                                         ResNet-18 on digits, a minute
  runner model=nf_resnet50 norm=agc agc.clip=0.01
  runner 'norm=[ghost_batchnorm,agc]' regularization=dropout
  runner -m norm=agc agc.clip=0.01,0.02,0.04     a sweep of three runs
  runner experiment=cluttered_digits/resnet20    a recipe: a whole run in a file
  runner experiment=bjorck/fig4_divergence       a study: a sweep and verdicts
  runner resume=outputs/runs/NAME train.epochs=30
"""
PLAN = {"plan": "what a run or a sweep would do, and how long it would take"}
FLAGS = {
    "--cfg job": "print every setting of a run, and run nothing",
    "--version": "print the version",
    "--hydra-help": "the flags of Hydra, which reads the settings",
}
ABOUT_SETTINGS = """\
A method's settings bear its name (agc.clip, stochastic_depth.drop_rate), those
of other options their group's (optimizer.lr). To see all with their values:
runner --cfg job model=resnet50 norm=agc
Tab completion: eval "$(runner -sc install=bash)"
"""
FIRST = ("model", "norm", "regularization", "optimizer", "schedule", "dataset", "probe", "experiment")
PARTS_OF_STUDIES = ("case", "sweep")
LARGER = "_paper"  # ends the name of a study with the network and the data of the publication


def print_help(overrides: Sequence[str]) -> None:
    """Print it; lines are wrapped on a terminal alone, so that others can be searched."""
    folders = search_folders(add_search_path(overrides))
    is_wrapped = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = shutil.get_terminal_size().columns if is_wrapped else None
    print(HOW_TO_RUN)
    print(f"Subcommands (runner SUBCOMMAND --help says more):\n{_aligned({**PLAN, **SUBCOMMANDS})}\n")
    print("Groups and their options (* takes a list; case, sweep: parts of studies):")
    for name, options in _groups(folders):
        line = f"  {name}{'*' if name in LIST_GROUPS else ''}: {', '.join(options)}"
        print("\n".join(wrap(line, width, subsequent_indent="    ", break_on_hyphens=False)) if width else line)
    print(f"\nFlags:\n{_aligned(FLAGS)}\n\n{ABOUT_SETTINGS}", end="")


def _aligned(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:13} {meaning}" for name, meaning in rows.items())


def _groups(folders: Sequence[Path]) -> Iterator[tuple[str, list[str]]]:
    """Each group's name with its options; folders in a group are groups of their own."""
    files = [file.relative_to(folder) for folder in folders for file in folder.rglob("*.yaml")]
    names = {file.parent.as_posix() for file in files if file.parts[0] not in PARTS_OF_STUDIES} - {"."}
    for name in sorted(names, key=_rank):
        options = sorted({file.stem for file in files if file.parent.as_posix() == name}, key=by_number)
        yield name, [option for option in options if not option.endswith(LARGER)]


def _rank(name: str) -> tuple[int, str]:
    group = name.partition("/")[0]
    return FIRST.index(group) if group in FIRST else len(FIRST), name


def by_number(option: str) -> list[tuple[str, int]]:
    """resnet50 before resnet101."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)|$", option)]
