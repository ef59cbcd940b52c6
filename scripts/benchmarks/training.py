"""The runner's training loop beside a bare one in plain PyTorch: images a second, memory, and where the rest goes.

Both train the same model object with the same batches and, but for the last arm, the same optimizer object. The
runner's part is a whole run (`experiment.run`), with its checkpoints, evaluations and display; an epoch of it is a
block, and before each epoch the bare loops run one too.
"""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from runner.data.dataset import TrainBatches
from runner.training import step as step_module
from runner.training.evaluation import Validation
from runner.training.loop import Trainer
from runner.training.precision import Precision

from . import watched_run
from .result import Result
from .timing import Scale, Span, Stopwatch
from .watched_run import Clocks, WatchedBatches

RUNNER, BARE, PLAIN = "runner", "bare loop", "default optimizer"  # the last: a bare loop, torch's choice of form
WARM_UP_BLOCKS = 2  # in the second of which memory is measured, before the plain optimizer takes its own
BREAKDOWN_BLOCKS = 2
SMALLEST_RATIO = {"cpu": 0.97, "cuda": 0.98}  # of the runner's images/s to the bare loop's
LARGEST_MEMORY_RATIO = 1.02
LONGEST_START, FIRST_LINE = 2.0, 1.0  # seconds
LARGEST_MODEL_OF_START = 50_000_000  # parameters

# of a step, by the function in which it is spent
PARTS_OF_A_STEP = (
    ("state.metrics.add", "sums of loss and counts"),
    ("state.metrics.add_step", "sums of what was measured in the step"),
    ("state.metrics.read", "reading the sums"),
    ("state.metrics.means", "means, rows and display"),
    ("tracker.progress", "means, rows and display"),
    ("tracker.log", "means, rows and display"),
    ("non_finite.update", "look at whether all is finite"),
    ("non_finite.read", "look at whether all is finite"),
    ("state.ema.update", "average of the weights"),
    ("schedule.step", "schedule"),
    ("state.precision.scaler.scale", "loss scale"),
    ("state.precision.scaler.unscale_", "loss scale"),
    ("state.precision.scaler.update", "loss scale"),
)
PARTS_OF_THE_STEP_MODULE = (("gradient_norm", "norm of the gradient"),)
PLACES_OF_A_METHOD = ("on_step", "transform_batch", "transform_gradients")
EVALUATION, CHECKPOINTS = "evaluation", "checkpoints"  # between epochs
PARTS_BETWEEN_EPOCHS = (("top_k.update", CHECKPOINTS), ("_save_last", CHECKPOINTS))


@dataclass(frozen=True)
class TrainingScale(Scale):
    """How large the measurement of the loop is; `settings` are further overrides of the run, as train.ema=0.999."""

    num_classes: int = 10
    steps: int = 12  # of a block
    precision: str = "auto"
    settings: tuple[str, ...] = ()

    def overrides(self, *, epochs: int, outputs: str | Path) -> list[str]:
        """Those of a run of so many epochs; random labels and a small learning rate, so that nothing happens."""
        return [
            "dataset=random",
            f"dataset.num_images={self.batch_size * self.steps}",
            f"dataset.image_size={self.image_size}",
            f"dataset.num_classes={self.num_classes}",
            f"model={self.model}",
            f"train.global_batch_size={self.batch_size}",
            f"train.device={self.device.type}",
            f"train.precision={self.precision}",
            f"train.compile={self.compiled}",
            f"train.epochs={epochs}",
            "schedule=constant",
            "schedule.warmup_epochs=0",
            "optimizer.lr=1e-4",
            "wandb.mode=disabled",
            f"paths.outputs={outputs}",
            *self.settings,
        ]


QUICK = {"blocks": 2, "batch_size": 4, "image_size": 8, "steps": 2}
ON_CUDA = {"model": "resnet50", "batch_size": 256, "image_size": 224, "num_classes": 1000, "steps": 25}


def measure(scale: TrainingScale) -> dict:
    """Everything `bench.py train` reports but the start: throughput, memory, the runner's own share of a step."""
    comparison = _Comparison(scale)
    with tempfile.TemporaryDirectory() as outputs:
        epochs = WARM_UP_BLOCKS + scale.blocks + BREAKDOWN_BLOCKS
        watched_run.run(watched_run.composed(scale.overrides(epochs=epochs, outputs=outputs)), comparison.take)
    return comparison.result()


class _Comparison:
    """The run that is measured, and the bare loops in its pauses."""

    def __init__(self, scale: TrainingScale) -> None:
        self.scale = scale
        self.spans: dict[str, list[Span]] = {BARE: [], PLAIN: []}
        self.memory: dict[str, int] = {}
        self.clock = "wall" if scale.device.type == "cuda" else "cpu"  # other work on a machine disturbs this one less
        self.clocks = Clocks(scale.device, self.clock)
        self._stack = ExitStack()

    def take(self, trainer: Trainer) -> None:
        """Take over a trainer that has not started."""
        self.trainer, self.state = trainer, trainer.state
        self.bare_batches = trainer.train_batches
        self.batches = WatchedBatches(trainer.train_batches, self.scale.device, self.before_epoch)
        trainer.train_batches = self.batches

    def before_epoch(self, epoch: int) -> None:
        """Run a block of each bare loop; at the end of all blocks put clocks into the runner's."""
        device = self.scale.device
        if epoch == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._block(BARE, epoch)
            self.memory[BARE] = torch.cuda.max_memory_allocated(device)
        elif epoch < WARM_UP_BLOCKS:
            self._block(BARE, epoch)
        elif epoch < WARM_UP_BLOCKS + self.scale.blocks:
            self._make_plain_optimizer()
            for arm in (BARE, PLAIN) if epoch % 2 else (PLAIN, BARE):
                self.spans[arm].append(self._block(arm, epoch))
        elif epoch == WARM_UP_BLOCKS + self.scale.blocks:
            self._install_clocks()
        self.state.optimizer.zero_grad(set_to_none=True)

    def _make_plain_optimizer(self) -> None:
        if not hasattr(self, "plain"):
            self.plain = plain_optimizer(self.state.optimizer)
            self._block(PLAIN, 0)

    def _block(self, arm: str, epoch: int) -> Span:
        optimizer = self.plain if arm == PLAIN else self.state.optimizer
        watch = Stopwatch(self.scale.device)
        train_bare(self.state.model, optimizer, self.bare_batches, self.state.precision, epoch)
        return watch.read()

    def _install_clocks(self) -> None:
        trainer = self.trainer
        self._stack.enter_context(self.clocks.on_all(trainer, PARTS_OF_A_STEP + PARTS_BETWEEN_EPOCHS))
        self._stack.enter_context(self.clocks.on_all(step_module, PARTS_OF_THE_STEP_MODULE))
        self._stack.enter_context(self.clocks.on(Validation, "__call__", EVALUATION))
        for name, method in trainer.state.methods.items():
            parts = [(place, f"method {name}") for place in PLACES_OF_A_METHOD]
            self._stack.enter_context(self.clocks.on_all(method, parts))

    def result(self) -> dict:
        """The measurements as plain numbers."""
        self._stack.close()
        epochs = self.batches.epochs
        measured = slice(WARM_UP_BLOCKS, WARM_UP_BLOCKS + self.scale.blocks)
        spans = {RUNNER: epochs[measured], **self.spans}
        images = self.scale.batch_size * len(self.batches)
        memory = {**self.memory, RUNNER: self.batches.peak_memory[1]} if self.memory else {}
        return {
            "num_params": sum(parameter.numel() for parameter in self.state.model.parameters()),
            "precision": self.state.precision.name,
            "optimizer": {name: _step_form(o) for name, o in ((BARE, self.state.optimizer), (PLAIN, self.plain))},
            "arms": {name: _arm(of_arm, images) for name, of_arm in spans.items()},
            "ratios": {name: ratios(spans[RUNNER], spans[name]) for name in (BARE, PLAIN)},
            "peak_memory_bytes": memory,
            "breakdown": self._breakdown(spans),
        }

    def _breakdown(self, spans: Mapping[str, list[Span]]) -> dict:
        """Milliseconds a step: of the two loops as they were compared, and of parts of the runner's, timed after it."""
        steps = len(self.batches)
        of_blocks = {name: [getattr(span, self.clock) for span in spans[name]] for name in (RUNNER, BARE)}
        step = {name: 1e3 * statistics.median(seconds) / steps for name, seconds in of_blocks.items()}
        between = (EVALUATION, CHECKPOINTS)
        per_step = {
            name: 1e3 * spent / (steps * BREAKDOWN_BLOCKS)
            for name, spent in self.clocks.seconds.items()
            if name not in between
        }
        rest = step[RUNNER] - step[BARE] - sum(per_step.values())
        return {
            "clock": self.clock,
            "step_ms": step,
            "parts_ms": dict(sorted(per_step.items(), key=lambda item: -item[1])),
            "rest_ms": rest,
            "between_epochs_s": {name: self.clocks.seconds[name] / BREAKDOWN_BLOCKS for name in between},
        }


def train_bare(model: nn.Module, optimizer: Optimizer, batches: TrainBatches, precision: Precision, epoch: int) -> None:
    """An epoch in plain PyTorch: forward, loss, backward, the optimizer's step, and in fp16 the loss scale."""
    scaler = precision.scaler
    model.train()
    for images, targets in batches.epoch(epoch):
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            loss = F.cross_entropy(model(images), targets)
        if scaler.is_enabled():
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """One of the same class and settings over the same parameters, in the form that torch chooses by itself."""
    known = set(inspect.signature(type(optimizer)).parameters) - {"fused", "foreach"}
    settings = {key: value for key, value in optimizer.defaults.items() if key in known}
    groups = [
        {"params": group["params"], **{key: value for key, value in group.items() if key in known - {"params"}}}
        for group in optimizer.param_groups
    ]
    return type(optimizer)(groups, **settings)


def _step_form(optimizer: Optimizer) -> str:
    form = next((name for name in ("fused", "foreach") if optimizer.defaults.get(name)), "as torch chooses")
    return f"{type(optimizer).__name__}, {form}"


def _arm(spans: list[Span], images: int) -> dict:
    return {
        "images_per_second": images / statistics.median(span.wall for span in spans),
        "images_per_cpu_second": images / statistics.median(span.cpu for span in spans),
        "blocks_s": [round(span.wall, 5) for span in spans],
        "blocks_cpu_s": [round(span.cpu, 5) for span in spans],
    }


def ratios(of: list[Span], over: list[Span]) -> dict:
    """The images/s of one arm as a share of another's: of medians, of the fastest blocks, and from block to block."""
    shares = {}
    for clock in ("wall", "cpu"):
        own, others = ([getattr(span, clock) for span in spans] for spans in (of, over))
        by_block = [other / seconds for seconds, other in zip(own, others, strict=True)]
        shares[clock] = {
            "of_medians": statistics.median(others) / statistics.median(own),
            "of_fastest": min(others) / min(own),
            "quartiles_over_blocks": statistics.quantiles(by_block, n=4, method="inclusive"),
            "blocks": by_block,
        }
    return shares


def start(scale: TrainingScale) -> dict:
    """Seconds from nothing to the first step in a process of its own, see benchmarks.start."""
    with tempfile.TemporaryDirectory() as outputs:
        overrides = replace(scale, compiled=False, steps=3).overrides(epochs=1, outputs=outputs)
        command = [sys.executable, Path(__file__).with_name("start.py"), str(torch.get_num_threads()), *overrides]
        line = first_line(overrides)
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the start could not be measured:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "first_line_s": line}


def first_line(overrides: Sequence[str]) -> float:
    """Seconds from a command to its first output on a terminal, at which it is ended."""
    ours, terminal = os.openpty()
    began = time.perf_counter()
    command = [sys.executable, "-m", "runner", *overrides]
    root = Path(__file__).resolve().parents[2]  # of the runner
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=root) as process:
        os.close(terminal)
        first = os.read(ours, 4096)
        seconds = time.perf_counter() - began
        process.kill()
    os.close(ours)
    if b"Preparing" not in first:
        raise RuntimeError(f"the first line could not be timed:\n{first.decode(errors='replace')}")
    return seconds


def results(scale: TrainingScale, measured: Mapping, started: Mapping) -> list[Result]:
    """What the loop is held to, and what became of it."""
    arms, ratio = measured["arms"], measured["ratios"][BARE]["wall"]
    step = f"{scale.model}, batch {scale.batch_size}, {scale.image_size} px, {measured['precision']}"
    ours, beside = (arms[name]["images_per_second"] for name in (RUNNER, BARE))
    bound, blocks = SMALLEST_RATIO[scale.device.type], ratio["blocks"]
    found = [Result(f"training loop, {step}", ours, "images/s", beside, BARE, bound, is_upper=False, blocks=blocks)]
    if memory := measured["peak_memory_bytes"]:
        ours, beside = (memory[name] / 2**20 for name in (RUNNER, BARE))
        found.append(Result(f"peak memory, {step}", ours, "MiB", beside, BARE, LARGEST_MEMORY_RATIO))
    if measured["num_params"] <= LARGEST_MODEL_OF_START:
        what = "start of a run to its first step, without imports and data"
        found.append(Result(what, started["to_first_step_s"], "s", bound=LONGEST_START))
    found.append(Result("first line on a terminal", started["first_line_s"], "s", bound=FIRST_LINE))
    found.append(Result("first step's end, imports and data counted", started["imports_to_first_step_s"], "s"))
    return found
