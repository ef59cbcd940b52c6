"""`bench.py methods`: what each method costs, as tables."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from runner.experiment.setup import set_backends
from runner.training.precision import Precision

from .layers import kept_memory
from .methods import Comparison, MethodScale, comparisons
from .part import Report, scaled, table_of
from .result import Result
from .timing import interleaved

HELP = "what each method costs"
IN_ALL = ["--blocks", "6", "--with-targets"]
QUICK = {
    "blocks": 2,
    "model": "resnet18",
    "batch_size": 4,
    "image_size": 64,
    "ghost_batch_size": 2,
    "layer_shapes": ((32, 8, 4, 4),),
}
CUDA = {
    "batch_size": 256,
    "image_size": 224,
    "ghost_batch_size": 32,
    "layer_shapes": ((256, 256, 56, 56), (256, 2048, 7, 7)),
    "channels_last": True,
    "bf16": True,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of this part alone."""
    parser.add_argument("--only", nargs="*", metavar="WORDS", help="comparisons with one of these in their title")
    parser.add_argument("--with-targets", action="store_true", help="comparisons that are held to a target")


def measure(arguments: argparse.Namespace, device: torch.device, console: Console) -> Report:
    """Time the comparisons in turn. The ratios are of the minima over the blocks, for stochastic depth of the means."""
    scale = scaled(arguments, MethodScale(device, blocks=arguments.blocks, compiled=arguments.compile), QUICK, CUDA)
    set_backends(deterministic=False)
    precision = "bf16" if scale.bf16 else "fp32"
    Precision(precision, device).set_backends()
    chosen = [
        comparison
        for comparison in comparisons(scale)
        if (not arguments.only or any(word in comparison.title for word in arguments.only))
        and (comparison.targets or not arguments.with_targets)
    ]
    if not chosen:
        titles = "\n  ".join(comparison.title for comparison in comparisons(scale))
        raise SystemExit(
            f"--only {' '.join(arguments.only)}: no comparison has that in its title; there are\n  {titles}"
        )
    measured, results = [], []
    for comparison in chosen:
        blocks = comparison.blocks or scale.blocks
        seconds = interleaved(comparison.arms(), blocks=blocks, repeats=comparison.repeats, device=scale.device)
        own = _results(comparison, seconds)
        results += own
        about = {"title": comparison.title, "precision": comparison.precision or precision}
        measured.append(about | {"statistic": comparison.statistic, "arms": _arms(comparison, seconds)})
        console.print(f"\n{comparison.title}", style="bold", soft_wrap=True)
        console.print(_table(measured[-1]))
    report = {"comparisons": measured}
    if not arguments.with_targets:
        report["kept_for_backward"] = memory = kept_memory(scale)
        for title, kept in memory.items():
            console.print(f"\nKept for backward, {title}:", style="bold", soft_wrap=True)
            console.print(", ".join(f"{name} {size:,} bytes" for name, size in kept.items()))
    return Report(asdict(scale), report, results)


def _statistic(comparison: Comparison, seconds: dict[str, list[float]]) -> dict[str, float]:
    of = {"min": min, "mean": statistics.mean}[comparison.statistic]
    return {name: of(blocks) for name, blocks in seconds.items()}


def _arms(comparison: Comparison, seconds: dict[str, list[float]]) -> dict:
    """Milliseconds and ratios of each arm."""
    value = _statistic(comparison, seconds)
    median = {name: statistics.median(blocks) for name, blocks in seconds.items()}
    plain = next(iter(seconds))
    return {
        name: {
            "ms": 1e3 * value[name],
            "ratio": value[name] / value[plain],
            "ratio_of_medians": median[name] / median[plain],
            "blocks_ms": [round(1e3 * block, 4) for block in blocks],
        }
        for name, blocks in seconds.items()
    }


def _results(comparison: Comparison, seconds: dict[str, list[float]]) -> list[Result]:
    """What became of the targets."""
    value, results = _statistic(comparison, seconds), []
    plain = next(iter(seconds))
    for kind, arm, other, at_most in comparison.targets:
        added = kind == "added"
        less = value[plain] if added else 0.0
        by_block = zip(seconds[arm], seconds[other], seconds[plain], strict=True)
        ratios = [(own - added * base) / (beside - added * base) for own, beside, base in by_block]
        what = comparison.title + ("" if arm in ("ours", "GhostBatchNorm2d") else f", {arm}")
        ours, beside = (1e3 * (value[name] - less) for name in (arm, other))
        what += ", added to the plain step" if added else ""
        results.append(Result(what, ours, "ms", beside, other, at_most, blocks=ratios))
    return results


def _table(measured: dict) -> Table:
    table = table_of("", "ms", "ratio", "of medians", "precision")
    for name, arm in measured["arms"].items():
        ratios = (f"{arm[key]:.2f}" for key in ("ms", "ratio", "ratio_of_medians"))
        table.add_row(name, *ratios, measured["precision"])
    return table
