"""Measure what methods and what the training loop cost: `python scripts/bench.py methods|train [--device cuda] ...`.

`methods` times layers, clips and whole steps beside the ways of other libraries. The ratios are those of the minima
over the blocks (of the means for stochastic depth), with the medians beside them. `train` compares the runner's loop
with a bare one in PyTorch, and shows where the rest of a step goes and what comes before the first. Both print tables
and write all of it as JSON. What is compared runs in turn, in many short blocks, so that other work on the machine
spoils as little as possible. On a CPU torch gets 2 threads unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

import torch
from benchmarks import training
from benchmarks.methods import Comparison, MethodScale, comparisons, kept_memory
from benchmarks.timing import Scale, Target, interleaved
from benchmarks.training import TrainingScale
from rich.console import Console
from rich.table import Table

from runner import models as library
from runner.config.options import options_of_kind
from runner.experiment.setup import set_backends
from runner.tracking.provenance import provenance
from runner.training.precision import Precision, choose_device

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


def main() -> None:
    """Read the arguments, measure, print, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = _device(arguments.device)
    console = Console(highlight=False)
    load = os.getloadavg()[0]
    console.print(f"{_machine(device)}; load {load:.1f}")
    if load > 1:
        console.print("Other work is running on this machine: trust the ratios less.", style="yellow")
    measure = {"methods": _methods, "train": _train}[arguments.what]
    settings, results = measure(arguments, device, console)
    report = {
        "machine": _machine(device),
        "settings": {**settings, "device": str(device), "threads": torch.get_num_threads(), "load": load},
        "provenance": provenance(["python", "scripts/bench.py", *sys.argv[1:]]),
        **results,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"Written to {arguments.json}")


def _methods(arguments: argparse.Namespace, device: torch.device, console: Console) -> tuple[dict, dict]:
    scale = _scale(arguments, MethodScale(device, blocks=arguments.blocks, compiled=arguments.compile), QUICK, CUDA)
    set_backends(deterministic=False)
    precision = "bf16" if scale.bf16 else "fp32"
    Precision(precision, device).set_backends()
    chosen = [
        comparison
        for comparison in comparisons(scale)
        if not arguments.only or any(word in comparison.title for word in arguments.only)
    ]
    if not chosen:
        titles = "\n  ".join(comparison.title for comparison in comparisons(scale))
        raise SystemExit(
            f"--only {' '.join(arguments.only)}: no comparison has that in its title; there are\n  {titles}"
        )
    results = []
    for comparison in chosen:
        seconds = interleaved(
            comparison.arms(), blocks=comparison.blocks or scale.blocks, repeats=comparison.repeats, device=scale.device
        )
        results.append(_result(comparison, seconds, precision))
        console.print(f"\n{comparison.title}", style="bold", soft_wrap=True)
        console.print(_table(results[-1]))
        for target in results[-1]["targets"]:
            verdict = f"within the target of {target['at_most']}" if target["met"] else f"ABOVE {target['at_most']}"
            ratio = f"{target['what']}: {target['ratio']:.2f} in {results[-1]['precision']}, {verdict}"
            console.print(ratio, style="" if target["met"] else "yellow")
    console.print()
    memory = kept_memory(scale)
    for title, kept in memory.items():
        console.print(f"Kept for backward, {title}:", style="bold", soft_wrap=True)
        console.print(", ".join(f"{name} {size:,} bytes" for name, size in kept.items()))
    return asdict(scale), {"comparisons": results, "kept_for_backward": memory}


def _train(arguments: argparse.Namespace, device: torch.device, console: Console) -> tuple[dict, dict]:
    scale = TrainingScale(
        device,
        blocks=arguments.blocks,
        precision=arguments.precision,
        compiled=arguments.compile,
        settings=tuple(arguments.set),
    )
    scale = _scale(arguments, scale, training.QUICK, training.ON_CUDA)
    measured = training.measure(scale)
    started = training.start(scale)
    targets = training.targets(scale, measured, started)
    console.print(
        f"\n{scale.model}, {measured['num_params'] / 1e6:.1f} M parameters, batch {scale.batch_size}, "
        f"{scale.image_size} px, {measured['precision']}; {scale.blocks} blocks of {scale.steps} steps",
        style="bold",
    )
    for table in _train_tables(measured, started):
        console.print(table)
        console.print()
    for target in targets:
        bound = f"{'' if target.met else 'NOT '}at {'most' if target.is_upper else 'least'} {target.bound}"
        console.print(f"{target.what}: {target.value:.3f}, {bound}", style="" if target.met else "yellow")
    return asdict(scale), {**measured, "start": started, "targets": [target.as_dict() for target in targets]}


def _train_tables(measured: dict, started: dict) -> list[Table]:
    arms = _columns("", "images/s", "a CPU second", "runner's share", "quartiles over blocks", "of CPU time")
    for name, arm in measured["arms"].items():
        row = [name, f"{arm['images_per_second']:.1f}", f"{arm['images_per_cpu_second']:.1f}"]
        if name in measured["ratios"]:
            wall, cpu = (measured["ratios"][name][clock] for clock in ("wall", "cpu"))
            low, _, high = wall["quartiles_over_blocks"]
            row += [f"{wall['of_medians']:.3f}", f"{low:.3f} - {high:.3f}", f"{cpu['of_medians']:.3f}"]
        arms.add_row(*row)
    breakdown = measured["breakdown"]
    parts = _columns(f"a step ({breakdown['clock']} time)", "ms", "of the bare loop's")
    bare = breakdown["step_ms"][training.BARE]
    rows = {**breakdown["step_ms"], **breakdown["parts_ms"], "the rest": breakdown["rest_ms"]}
    for name, milliseconds in rows.items():
        parts.add_row(name, f"{milliseconds:.3f}", f"{milliseconds / bare:.2%}")
    before = _columns("before the first step", "s")
    before.add_row("imports (not counted)", f"{started['imports_s']:.2f}")
    before.add_row("data (not counted)", f"{started['data_s']:.2f}")
    for name, seconds in {**started["parts_s"], "together": started["to_first_step_s"]}.items():
        before.add_row(name, f"{seconds:.3f}")
    before.add_row("the first step over the second", f"{started['first_step_s'] - started['second_step_s']:.3f}")
    between = _columns("between epochs", "s")
    for name, seconds in breakdown["between_epochs_s"].items():
        between.add_row(name, f"{seconds:.3f}")
    tables = [arms, parts, between, before]
    if memory := measured["peak_memory_bytes"]:
        tables.append(_columns("peak memory", "MiB"))
        for name, size in memory.items():
            tables[-1].add_row(name, f"{size / 2**20:,.1f}")
    return tables


def _arguments() -> argparse.Namespace:
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    both.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of torch on the CPU")
    both.add_argument("--compile", action="store_true", help="compile models and layers")
    both.add_argument("--blocks", type=int, default=20, help="interleaved blocks of each comparison")
    both.add_argument("--model", help="of the whole steps")
    both.add_argument("--batch-size", type=int, help="of the whole steps")
    both.add_argument("--image-size", type=int, help="pixels, of the whole steps")
    both.add_argument("--quick", action="store_true", help="tiny and fast, to see whether it works: means nothing")
    both.add_argument("--json", type=Path, help="outputs/bench/methods.json or train.json by default")
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1], allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    methods = kinds.add_parser("methods", parents=[both], allow_abbrev=False, help="what each method costs")
    methods.add_argument("--only", nargs="*", metavar="WORDS", help="comparisons with one of these in their title")
    train = kinds.add_parser("train", parents=[both], allow_abbrev=False, help="the training loop beside a bare one")
    train.add_argument("--steps", type=int, help="of a block")
    train.add_argument("--precision", choices=("auto", "fp32", "tf32", "bf16", "fp16"), default="auto")
    train.add_argument("--set", nargs="*", metavar="KEY=VALUE", default=[], help="of the run, as train.ema=0.999")
    arguments = parser.parse_args()
    arguments.json = arguments.json or Path(f"outputs/bench/{arguments.what}.json")
    models = [
        name for name in library.__all__ if name.islower() and name not in options_of_kind("model", "segmentation")
    ]
    if arguments.model is not None and arguments.model not in models:
        parser.error(f"--model {arguments.model}: choose one of {', '.join(models)}")
    for name in ("threads", "blocks", "batch_size", "image_size", "steps"):
        if (value := getattr(arguments, name, None)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    return arguments


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except ValueError:
        raise SystemExit("--device cuda: torch sees no GPU here") from None


def _scale(arguments: argparse.Namespace, scale: Scale, quick: dict, on_cuda: dict) -> Scale:
    """The size of the measurement for the device, and as the arguments say."""
    if scale.device.type == "cuda":
        scale = replace(scale, **on_cuda)
    if arguments.quick:
        scale = replace(scale, **quick)
    given = {key: getattr(arguments, key, None) for key in ("model", "batch_size", "image_size", "steps")}
    return replace(scale, **{key: value for key, value in given.items() if value is not None})


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}"


def _result(comparison: Comparison, seconds: dict[str, list[float]], precision: str) -> dict:
    """Milliseconds and ratios of each arm, and what became of the targets."""
    of = {"min": min, "mean": statistics.mean}[comparison.statistic]
    value = {name: of(blocks) for name, blocks in seconds.items()}
    median = {name: statistics.median(blocks) for name, blocks in seconds.items()}
    plain = next(iter(seconds))
    arms = {
        name: {
            "ms": 1e3 * value[name],
            "ratio": value[name] / value[plain],
            "ratio_of_medians": median[name] / median[plain],
            "blocks_ms": [round(1e3 * block, 4) for block in blocks],
        }
        for name, blocks in seconds.items()
    }
    targets = []
    for kind, arm, other, at_most in comparison.targets:
        less = value[plain] if kind == "added" else 0.0
        ratio = (value[arm] - less) / (value[other] - less)
        what = f"{arm} adds" if kind == "added" else arm
        targets.append(Target(f"{what} / {other}", ratio, at_most).as_dict("ratio"))
    about = {"title": comparison.title, "precision": comparison.precision or precision}
    return {**about, "statistic": comparison.statistic, "arms": arms, "targets": targets}


def _table(result: dict) -> Table:
    table = _columns("", "ms", "ratio", "of medians", "precision")
    for name, arm in result["arms"].items():
        ratios = (f"{arm[key]:.2f}" for key in ("ms", "ratio", "ratio_of_medians"))
        table.add_row(name, *ratios, result["precision"])
    return table


def _columns(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for header in others:
        table.add_column(header, justify="right")
    return table


if __name__ == "__main__":
    main()
