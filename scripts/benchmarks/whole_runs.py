"""`bench.py peers`: whole commands, the runner's beside timm's train.py, with the same images, model, batch and epochs.

Both train torchvision's ResNet-18 by SGD on two jobs, evaluate after each epoch and write checkpoints: scikit-learn's
digits at 32 pixels, which the runner has in memory and timm reads from PNG files, and JPEG photos, cropped at random
to 128 pixels. timm's script comes from its repository, `--timm-train FILE`. Both are called as they come, with no
number format: the runner's then is what `train.precision=auto` gives, timm's fp32; `--timm-arguments` may say more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from runner.data.digits import digits

from .part import Report
from .photos import write_photos
from .result import Result

HELP = "whole commands beside timm's train.py, given by --timm-train"
IN_ALL = ["--blocks", "2"]
ROOT = Path(__file__).resolve().parents[2]
FASTER, SHORTER = 1.3, 0.8  # images/s at least, and the whole command's time at most, of timm's
OURS, TIMM = "runner", "timm's train.py"


@dataclass(frozen=True)
class Job:
    """What both train: `write` makes the files of `classes` in a folder; `overrides` and `arguments` say the rest."""

    title: str
    image_size: int
    batch_size: int
    epochs: int
    classes: int
    write: Callable[[Path], object]
    overrides: Callable[[Path], list[str]]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """Of a whole command: seconds on the wall and of its processes on the CPU, and images/s of its training."""

    seconds: float
    cpu_seconds: float
    speed: float


def jobs(*, photos: int = 160, epochs: int = 3) -> list[Job]:
    """The two jobs."""
    size, test_size = "dataset.image_size=128", "dataset.test_size=128"
    return [
        Job(
            "digits",
            *(32, 64, epochs, 10, write_digits),
            lambda _: ["dataset=digits", "dataset.image_size=32"],
            ("--no-aug",),
        ),
        Job(
            f"{photos} photos",
            *(128, 16, epochs, 2, lambda folder: write_photos(folder, photos)),
            lambda folder: ["dataset=image_folder", f"dataset.root={folder}", size, test_size, "dataset.num_workers=1"],
            ("--color-jitter", "0", "--train-interpolation", "bilinear"),
        ),
    ]


def write_digits(root: Path) -> None:
    """The digits of a run's training and validation split, as PNG files."""
    data = digits(image_size=32)
    for split, name in ((data.train, "train"), (data.validation, "val")):
        for place, (image, target) in enumerate(zip(split.images, split.targets, strict=True)):
            folder = root / name / str(target.item())
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(folder / f"{place}.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of this part alone."""
    parser.add_argument("--timm-arguments", default="", help="more for timm, as '--amp --amp-dtype bfloat16'")


def measure(arguments: argparse.Namespace, device: torch.device, console: Console) -> Report:
    """Run both commands in turn, `--blocks` times, once with a new process each."""
    if arguments.timm_train is None:
        console.print("not measured: name timm's train.py by --timm-train", style="yellow")
        return Report({})
    chosen = jobs(photos=16, epochs=1) if arguments.quick else jobs()
    more = (*shlex.split(arguments.timm_arguments), "--device", device.type)
    runs, results = {}, []
    for job in chosen:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job.write(folder / "data")
            ways = {
                OURS: lambda job=job, folder=folder: run_ours(job, folder, device.type),
                TIMM: lambda job=job, folder=folder: run_timm(job, folder, arguments.timm_train, more),
            }
            measured: dict[str, list[Measured]] = {OURS: [], TIMM: []}
            for block in range(arguments.blocks):
                for way in list(ways)[:: -1 if block % 2 else 1]:
                    measured[way].append(ways[way]())
                    last = measured[way][-1]
                    spent = f"{last.seconds:.1f} s in all, {last.cpu_seconds:.1f} s of CPU"
                    console.print(f"{job.title}, {way}: {last.speed:.0f} images/s, {spent}")
        runs[job.title] = {way: [vars(each) for each in times] for way, times in measured.items()}
        results += _results(job, measured, " ".join([TIMM, arguments.timm_arguments]).strip())
    return Report({"timm_arguments": arguments.timm_arguments}, {"runs": runs}, results)


def _results(job: Job, measured: dict[str, list[Measured]], beside: str) -> list[Result]:
    about = f"resnet18, {job.image_size} px, batch {job.batch_size}, {job.epochs} epochs"
    results = []
    for key, unit, what, bound in (("speed", "images/s", "", FASTER), ("seconds", "s", ", whole command", SHORTER)):
        own, other = ([getattr(each, key) for each in measured[way]] for way in (OURS, TIMM))
        ratios = [mine / theirs for mine, theirs in zip(own, other, strict=True)]
        middle = statistics.median(own), statistics.median(other)
        title, is_upper = f"{job.title}, {about}{what}", key == "seconds"
        results.append(Result(title, middle[0], unit, middle[1], beside, bound, is_upper=is_upper, blocks=ratios))
    return results


def run_ours(job: Job, folder: Path, device: str) -> Measured:
    """`python -m runner` on the job."""
    outputs = tempfile.mkdtemp(dir=folder)
    words = [*job.overrides(folder / "data"), "model=resnet18", "model.stem=imagenet", "optimizer.lr=0.05", "name=run"]
    words += [f"train.global_batch_size={job.batch_size}", f"train.epochs={job.epochs}", f"train.device={device}"]
    words += ["wandb.mode=disabled", f"paths.outputs={outputs}"]
    seconds, cpu_seconds, _ = _timed([sys.executable, "-m", "runner", *words], folder)
    summary = json.loads(Path(outputs, "runs/run/summary.json").read_text())
    return Measured(seconds, cpu_seconds, summary["throughput"]["images_per_second"])


def run_timm(job: Job, folder: Path, script: Path, more: tuple[str, ...]) -> Measured:
    """timm's script on the job. Its images/s are the mean of the last epoch, as it logs them."""
    words = ["--data-dir", folder / "data", "--train-split", "train", "--val-split", "val", "--model", "resnet18"]
    words += ["--num-classes", job.classes, "--img-size", job.image_size, "-b", job.batch_size, "--epochs", job.epochs]
    words += ["--lr", 0.05, "--warmup-epochs", 0, "--smoothing", 0, "-j", 1, "--log-interval", 1]
    words += ["--output", tempfile.mkdtemp(dir=folder), *job.arguments, *more]
    seconds, cpu_seconds, log = _timed([sys.executable, script.resolve(), *words], folder)
    return Measured(seconds, cpu_seconds, speed_in(log))


def speed_in(log: str) -> float:
    """The mean images/s of the last epoch in the log of timm's script."""
    means = re.findall(r"Train: \d+ .*\([\d.]+s, +([\d.]+)/s\)", log)
    if not means:
        raise RuntimeError(f"timm's script logged no images/s:\n{log[-2000:]}")
    return float(means[-1])


def _timed(command: list, folder: Path) -> tuple[float, float, str]:
    """A command's seconds on the wall and on the CPU, and all it prints. RuntimeError if it fails."""
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, os.times()
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return seconds, cpu_seconds, done.stdout + done.stderr
