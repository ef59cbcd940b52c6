"""`bench.py sweep`: the runs an hour of eight small jobs, one after the other and at once, from command to report."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from runner.distributed.signals import raise_on_signal

from .part import Report, table_of
from .result import Result

HELP = "eight small jobs at once beside one after the other"
IN_ALL: list[str] = []
JOBS = 8
IN_TURN = "one after the other"
AT_ONCE = {"cpu": ("sweep.jobs_at_once=auto",), "cuda": ("sweep.jobs_per_device=4",)}
TARGET_ON_CUDA = 3.0
SMALL = ("model=resnet20", "dataset=random", "dataset.num_images=4096", "train.global_batch_size=128")
SMALL += ("train.evaluate_every_epochs=100", "train.checkpoint_every_epochs=100", "wandb.mode=disabled")
EPOCHS = {"cpu": 1, "cuda": 100}
QUICK = ("dataset.num_images=256", "dataset.image_size=8", "train.epochs=1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of this part alone."""
    parser.set_defaults(blocks=1)
    parser.add_argument("--set", nargs="*", metavar="KEY=VALUE", default=[], help="of each job, as train.epochs=20")
    parser.add_argument("--at-once", nargs="*", metavar="KEY=VALUE", help="as sweep.jobs_at_once=4")


def measure(arguments: argparse.Namespace, device: torch.device, console: Console) -> Report:
    """Run the sweep both ways in turn, `blocks` times."""
    at_once = tuple(arguments.at_once or AT_ONCE[device.type])
    settings = [*SMALL, f"train.device={device.type}", f"train.epochs={EPOCHS[device.type]}"]
    settings += [*(QUICK if arguments.quick else ()), *arguments.set]
    arms = {IN_TURN: (), " ".join(at_once): at_once}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for block in range(arguments.blocks):
        for name in list(arms)[:: 1 if block % 2 == 0 else -1]:
            seconds[name].append(run_sweep([*settings, *arms[name]], threads=torch.get_num_threads()))
            console.print(f"{name}: {JOBS} jobs in {seconds[name][-1]:.1f} s")
    hourly = {name: [3600 * JOBS / each for each in taken] for name, taken in seconds.items()}
    table = table_of("", "runs an hour")
    for name, rates in hourly.items():
        table.add_row(name, f"{sum(rates) / len(rates):,.0f}")
    console.print(table)
    about = {"jobs": JOBS, "settings": settings, "blocks": arguments.blocks}
    return Report(about, {"seconds": seconds}, results(hourly))


def run_sweep(settings: Sequence[str], *, threads: int) -> float:
    """The seconds of a sweep over `JOBS` seeds with so many threads in all."""
    command = [sys.executable, "-m", "runner", "-m", f"seed=range({JOBS})", *settings, "sweep.name=bench"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with raise_on_signal():  # which ends the sweep as well
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        taken = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"the sweep ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return taken


def results(hourly: dict[str, list[float]]) -> list[Result]:
    """The runs an hour at once beside those in turn."""
    in_turn, (name, at_once) = hourly[IN_TURN], next(item for item in hourly.items() if item[0] != IN_TURN)
    return [
        Result(
            f"{JOBS} small jobs, {name}",
            sum(at_once) / len(at_once),
            "runs an hour",
            beside=sum(in_turn) / len(in_turn),
            beside_what=IN_TURN,
            bound=TARGET_ON_CUDA if "per_device" in name else None,
            is_upper=False,
            blocks=[ours / beside for ours, beside in zip(at_once, in_turn, strict=True)],
        )
    ]
