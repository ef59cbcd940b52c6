"""`bench.py train`: the training loop beside a bare one in PyTorch, and what comes before the first step, as tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from . import training
from .part import Report, scaled, table_of
from .training import TrainingScale

HELP = "the training loop beside a bare one"
IN_ALL = ["--blocks", "10"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of this part alone."""
    parser.add_argument("--steps", type=int, help="of a block")
    parser.add_argument("--precision", choices=("auto", "fp32", "tf32", "bf16", "fp16"), default="auto")
    parser.add_argument("--set", nargs="*", metavar="KEY=VALUE", default=[], help="of the run, as train.ema=0.999")


def measure(arguments: argparse.Namespace, device: torch.device, console: Console) -> Report:
    """Time a run's epochs and, in turn with them, those of the bare loops."""
    scale = TrainingScale(
        device,
        blocks=arguments.blocks,
        precision=arguments.precision,
        compiled=arguments.compile,
        settings=tuple(arguments.set),
    )
    scale = scaled(arguments, scale, training.QUICK, training.ON_CUDA)
    measured = training.measure(scale)
    started = training.start(scale)
    console.print(
        f"\n{scale.model}, {measured['num_params'] / 1e6:.1f} M parameters, batch {scale.batch_size}, "
        f"{scale.image_size} px, {measured['precision']}; {scale.blocks} blocks of {scale.steps} steps",
        style="bold",
    )
    for table in _tables(measured, started):
        console.print(table)
        console.print()
    return Report(asdict(scale), measured | {"start": started}, training.results(scale, measured, started))


def _tables(measured: dict, started: dict) -> list[Table]:
    arms = table_of("", "images/s", "a CPU second", "runner's share", "quartiles over blocks", "of CPU time")
    for name, arm in measured["arms"].items():
        row = [name, f"{arm['images_per_second']:.1f}", f"{arm['images_per_cpu_second']:.1f}"]
        if name in measured["ratios"]:
            wall, cpu = (measured["ratios"][name][clock] for clock in ("wall", "cpu"))
            low, _, high = wall["quartiles_over_blocks"]
            row += [f"{wall['of_medians']:.3f}", f"{low:.3f} - {high:.3f}", f"{cpu['of_medians']:.3f}"]
        arms.add_row(*row)
    breakdown = measured["breakdown"]
    parts = table_of(f"a step ({breakdown['clock']} time)", "ms", "of the bare loop's")
    bare = breakdown["step_ms"][training.BARE]
    rows = {**breakdown["step_ms"], **breakdown["parts_ms"], "the rest": breakdown["rest_ms"]}
    for name, milliseconds in rows.items():
        parts.add_row(name, f"{milliseconds:.3f}", f"{milliseconds / bare:.2%}")
    before = table_of("before the first step", "s")
    before.add_row("first line on a terminal", f"{started['first_line_s']:.2f}")
    before.add_row("first step's end, all counted", f"{started['imports_to_first_step_s']:.2f}")
    before.add_row("imports (not counted)", f"{started['imports_s']:.2f}")
    before.add_row("data (not counted)", f"{started['data_s']:.2f}")
    for name, seconds in {**started["parts_s"], "together": started["to_first_step_s"]}.items():
        before.add_row(name, f"{seconds:.3f}")
    before.add_row("the first step over the second", f"{started['first_step_s'] - started['second_step_s']:.3f}")
    between = table_of("between epochs", "s")
    for name, seconds in breakdown["between_epochs_s"].items():
        between.add_row(name, f"{seconds:.3f}")
    tables = [arms, parts, between, before]
    if memory := measured["peak_memory_bytes"]:
        tables.append(table_of("peak memory", "MiB"))
        for name, size in memory.items():
            tables[-1].add_row(name, f"{size / 2**20:,.1f}")
    return tables
