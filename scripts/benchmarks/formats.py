"""`bench.py formats`: images/s of each model family in fp32 and bf16, contiguous and channels last, on a CPU.

The runner's own optimizer step is timed, on random images, on one thread by its CPU time: other work disturbs that
least. `--write` puts it into runner/training/formats.json, by which `train.precision=auto` and
`train.channels_last=null` choose.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.console import Console

from runner.config.options import TARGET
from runner.experiment import builders
from runner.experiment.check import check
from runner.experiment.setup import build_state
from runner.training import formats
from runner.training.divergence import FirstNonFinite
from runner.training.precision import Precision
from runner.training.step import OptimizerStep

from .part import Report
from .result import Result
from .timing import Arm, interleaved
from .watched_run import composed

HELP = "number formats and memory formats of each model family on a CPU"
IN_ALL = ["--blocks", "3", "--only", "resnet18, 12", "resnet20, 32"]
ARMS = {
    formats.key_of(form): form
    for form in (formats.Formats(name, order) for name in ("fp32", "bf16") for order in formats.ORDERS)
}


@dataclass(frozen=True)
class Case:
    """A model at a size and a batch that it is trained with here."""

    model: str
    image_size: int
    batch_size: int
    data: str = "random"

    @property
    def title(self) -> str:
        return f"{self.model}, {self.image_size} px, batch {self.batch_size}"

    @property
    def overrides(self) -> list[str]:
        size = [f"dataset.image_size={self.image_size}", "dataset.num_images=512"] if self.data == "random" else []
        batch = f"train.global_batch_size={self.batch_size}"
        return [f"model={self.model}", f"dataset={self.data}", *size, batch, "train.device=cpu", "train.precision=fp32"]


CASES = (
    Case("resnet20", 8, 64),
    Case("resnet20", 32, 64),
    Case("resnet110", 32, 32),
    Case("resnet18", 12, 64),
    Case("resnet18", 32, 32),
    Case("resnet18", 128, 16),
    Case("resnet50", 12, 64),
    Case("resnet50", 32, 16),
    Case("resnet50", 128, 16),
    Case("nf_resnet26", 12, 64),
    Case("nf_resnet50", 12, 64),
    Case("nf_resnet50", 128, 8),
    Case("nfnet_f0", 32, 8),
    Case("nfnet_f0", 128, 4),
    Case("deeplabv3plus_resnet18", 64, 16, "digit_scenes"),
    Case("deeplabv3plus_resnet50", 64, 8, "digit_scenes"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of this part alone."""
    parser.add_argument("--only", nargs="*", metavar="WORDS", help="cases with one of these in their title")
    parser.add_argument("--write", action="store_true", help="into the table, in the place of what it has of a case")


def measure(arguments: argparse.Namespace, device: torch.device, console: Console) -> Report:
    """Time the four forms of a step in turn, case by case."""
    if device.type != "cpu":
        raise SystemExit("bench.py formats: it measures a CPU; add --device cpu")
    cases = [case for case in CASES if not arguments.only or any(word in case.title for word in arguments.only)]
    if arguments.quick:
        cases = [replace(cases[0], batch_size=4)]
    if not cases:
        raise SystemExit("--only: no case has that in its title; there are\n  " + "\n  ".join(c.title for c in CASES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, results = [], []
    for case in cases:
        arms = {name: _step(case, *form) for name, form in ARMS.items()}
        seconds = interleaved(arms, blocks=arguments.blocks, repeats=1, device=device, clock="cpu")
        speed = {name: round(case.batch_size / min(blocks), 1) for name, blocks in seconds.items()}
        rows.append(_row(case) | {"images_per_second": speed})
        fp32, bf16 = (max((name for name in ARMS if name.startswith(p)), key=speed.get) for p in ("fp32", "bf16"))
        ratios = [own / other for own, other in zip(seconds[fp32], seconds[bf16], strict=True)]
        results.append(Result(f"{case.title}: {bf16}", speed[bf16], "images/s", speed[fp32], fp32, blocks=ratios))
        console.print(f"{case.title}: {', '.join(f'{name} {each:,.0f}' for name, each in speed.items())} images/s")
        if arguments.write:
            _write(rows)
    torch.set_num_threads(threads)
    return Report({"blocks": arguments.blocks}, {"rows": rows}, results)


def _write(rows: list[dict]) -> None:
    kept = {(row["model"], row["image_size"]): row for row in [*formats.TABLE, *rows]}
    lines = ",\n".join(f"  {json.dumps(kept[key])}" for key in sorted(kept))
    formats.PATH.write_text(f"[\n{lines}\n]\n")


def _row(case: Case) -> dict:
    checked = check(composed(case.overrides))
    family = checked.settings.model[TARGET].rpartition(".")[0]
    about = {"model": case.model, "image_size": case.image_size}
    return {**about, "family": family, "multiply_adds": checked.multiply_adds}


def _step(case: Case, precision: str, channels_last: bool) -> Arm:
    """The runner's step in this form, with a model of its own."""
    checked = check(composed([*case.overrides, f"train.channels_last={channels_last}"]))
    checked = replace(checked, precision=Precision(precision, torch.device("cpu"), channels_last))
    data = checked.data
    torch.manual_seed(0)
    example = data.example_input()
    built = builders.build_changed_model(checked.settings, num_classes=data.num_classes, example_input=example)
    step = OptimizerStep(
        build_state(checked, built), non_finite=FirstNonFinite(torch.device("cpu")), num_classes=data.num_classes
    )
    built.model.train()
    images = torch.randn(data.example_input(case.batch_size).shape)
    images = images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    places = (case.batch_size, *images.shape[2:]) if data.task == "segmentation" else (case.batch_size,)
    return Arm(partial(step, images, torch.randint(data.num_classes, places), number=1, progress=0.5))
