"""Measure what things cost: `python scripts/bench.py all`, or a part: `methods|train|... [--device cuda] ...`.

A part times the runner's way beside others, prints tables and writes all of it to outputs/bench/PART.json. What is
compared runs in turn, in many short blocks, so that other work on the machine spoils as little as possible. `all` runs
every part, shorter, and prints one table: what, ours, what stands beside it, their ratio with its quartiles over the
blocks, the target, and whether it is met. `table` puts the results of outputs/bench/*.json into scripts/README.md.
On a CPU torch gets 2 threads unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

import torch
from benchmarks import formats, methods_part, photos, sweep, training_part, whole_runs
from benchmarks.result import Result, console_table, markdown_table
from rich.console import Console

from runner import models as library
from runner.config.options import options_of_kind
from runner.tracking.provenance import provenance
from runner.training.precision import choose_device

PARTS: dict[str, ModuleType] = {  # each as benchmarks.part says
    "methods": methods_part,
    "train": training_part,
    "formats": formats,
    "photos": photos,
    "sweep": sweep,
    "peers": whole_runs,
}
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- bench.py table: begin -->\n", "<!-- bench.py table: end -->\n"


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = _parser()
    arguments = _checked(parser, parser.parse_args())
    if arguments.what == "table":
        write_table(arguments.folder, README)
        return
    torch.set_num_threads(arguments.threads)
    device = _device(arguments.device)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)  # a file's lines may be long
    console.print(f"{_machine(device)}; load {os.getloadavg()[0]:.1f}")
    if os.getloadavg()[0] > 1:
        console.print("Other work is running on this machine: trust the ratios less.", style="yellow")
    if arguments.what != "all":
        results = _measure(arguments, device, console, arguments.json)
    else:
        results = []
        for name in arguments.parts or PARTS:
            console.print(f"\n{name}: {PARTS[name].HELP}", style="bold")
            shared = ["--quick"] if arguments.quick else []
            shared += ["--timm-train", str(arguments.timm_train)] if arguments.timm_train else []
            own = parser.parse_args([name, *PARTS[name].IN_ALL, *shared])
            results += _measure(own, device, console, arguments.folder / f"{name}.json")
    console.print()
    console.print(console_table(results))


def _measure(arguments: argparse.Namespace, device: torch.device, console: Console, path: Path) -> list[Result]:
    """Measure a part and write its JSON file."""
    load = os.getloadavg()[0]
    report = PARTS[arguments.what].measure(arguments, device, console)
    content = {
        "machine": _machine(device),
        "settings": {**report.settings, "device": str(device), "threads": torch.get_num_threads(), "load": load},
        "provenance": provenance(["python", "scripts/bench.py", *sys.argv[1:]]),
        **report.measured,
        "results": [result.as_dict() for result in report.results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"\nWritten to {path}")
    return report.results


def write_table(folder: Path, readme: Path) -> None:
    """Put the results in `folder`, one table a machine, between the two markers of `readme`."""
    results: dict[str, list[Result]] = {}
    for name in PARTS:
        if (path := folder / f"{name}.json").is_file():
            saved = json.loads(path.read_text())
            results.setdefault(saved["machine"], []).extend(map(Result.from_dict, saved["results"]))
    if not results:
        raise SystemExit(f"{folder}: no results are there; run python scripts/bench.py all first")
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(f"{machine}:\n\n{markdown_table(of_machine)}" for machine, of_machine in results.items())
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


def _parser() -> argparse.ArgumentParser:
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    both.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of torch on the CPU")
    both.add_argument("--quick", action="store_true", help="tiny and fast, to see whether it works: means nothing")
    both.add_argument("--timm-train", type=Path, metavar="FILE", help="train.py of timm's repository, for peers")
    of_part = argparse.ArgumentParser(add_help=False)
    of_part.add_argument("--compile", action="store_true", help="compile models and layers")
    of_part.add_argument("--blocks", type=int, default=20, help="interleaved blocks of each comparison")
    of_part.add_argument("--model", help="of the whole steps")
    of_part.add_argument("--batch-size", type=int, help="of the whole steps")
    of_part.add_argument("--image-size", type=int, help="pixels, of the whole steps")
    of_part.add_argument("--json", type=Path, help="outputs/bench/PART.json by default")
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("--folder", type=Path, default=Path("outputs/bench"), help="of the parts' JSON files")
    paragraphs = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(description=paragraphs[0], epilog=paragraphs[1], allow_abbrev=False)
    kinds = parser.add_subparsers(dest="what", required=True)
    every = kinds.add_parser("all", parents=[both, files], allow_abbrev=False, help="every part, shorter, in one table")
    every.add_argument("--parts", nargs="+", choices=list(PARTS), help="these alone")
    kinds.add_parser("table", parents=[files], allow_abbrev=False, help="the results into scripts/README.md")
    for name, part in PARTS.items():
        part.add_arguments(kinds.add_parser(name, parents=[both, of_part], allow_abbrev=False, help=part.HELP))
    return parser


def _checked(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.Namespace:
    if arguments.what in PARTS:
        arguments.json = arguments.json or Path(f"outputs/bench/{arguments.what}.json")
    models = [
        name for name in library.__all__ if name.islower() and name not in options_of_kind("model", "segmentation")
    ]
    if getattr(arguments, "model", None) is not None and arguments.model not in models:
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


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    main()
