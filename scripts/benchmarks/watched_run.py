"""A run with clocks in it: what is measured is `runner.experiment.run.run`, as the command line calls it."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from torch import Tensor

from runner.config.settings import Settings
from runner.config.validation import CONF, validate
from runner.data.dataset import TrainBatches
from runner.experiment import run as experiment
from runner.tracking.console import RunConsole
from runner.training.loop import Trainer

from .timing import Span, Stopwatch


@dataclass
class Clocks:
    """Sums up the seconds inside functions, by the part of a step that they belong to. On a GPU each is waited for.

    `clock` is a field of `Span`.
    """

    device: torch.device
    clock: str
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inner: list[float] = field(default_factory=list)  # of each function being timed, the time of timed ones within it

    def on(self, owner: object, name: str, part: str) -> patch:
        """A context in which `owner.name` is timed for `part`; time within another timed function is the other's."""
        timed = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            watch = Stopwatch(self.device)
            self._inner.append(0.0)
            try:
                return timed(*args, **kwargs)
            finally:
                spent = getattr(watch.read(), self.clock)
                self.seconds[part] += spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        return patch.object(owner, name, call)

    @contextmanager
    def on_all(self, owner: object, parts: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Time each `owner.path`, given as (path, part); a path through a None is left out, as of a run without EMA."""
        with ExitStack() as stack:
            for path, part in parts:
                *way, name = path.split(".")
                holder = attrgetter(".".join(way))(owner) if way else owner
                if holder is not None:
                    stack.enter_context(self.on(holder, name, part))
            yield


class WatchedBatches(TrainBatches):
    """The run's own batches, which tell when an epoch of training begins and what its steps took.

    `before_epoch(number)` is called before the clock starts. `epochs` holds of each epoch the span from the moment the
    first batch was asked for to the one when the loop lets go of the last, and `steps` the moments between the two.
    """

    def __init__(self, batches: TrainBatches, device: torch.device, before_epoch: Callable[[int], object]) -> None:
        self.batches = batches
        self.num_classes = batches.num_classes
        self.batch_size = batches.batch_size
        self.device = device
        self.before_epoch = before_epoch
        self.epochs: list[Span] = []
        self.moments: list[float] = []  # of the last epoch: batch asked for, batch given, and so on
        self.peak_memory: list[int] = []  # bytes, on a GPU

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.before_epoch(epoch)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        watch = Stopwatch(self.device)
        self.moments = [time.perf_counter()]
        try:
            for batch in self.batches.epoch(epoch, start):
                self.moments.append(time.perf_counter())
                yield batch
                self.moments.append(time.perf_counter())
        finally:  # the loop breaks off after the last batch, which closes this generator
            self.epochs.append(watch.read())
            if self.device.type == "cuda":
                self.peak_memory.append(torch.cuda.max_memory_allocated(self.device))


def composed(overrides: Sequence[str]) -> Settings:
    """The validated settings of these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(compose("config", overrides=list(overrides)))


def run(config: Settings, prepared: Callable[[Trainer], object]) -> None:
    """`experiment.run`, where `prepared` sees the trainer before it starts. RuntimeError if the run does not complete.

    The display is drawn as on a terminal, into nothing.
    """
    prepare = experiment.prepare

    def prepare_and_tell(*args: object, **kwargs: object) -> Trainer:
        trainer = prepare(*args, **kwargs)
        prepared(trainer)
        return trainer

    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=100)
        with (
            patch.object(experiment, "prepare", prepare_and_tell),
            patch.object(experiment, "RunConsole", partial(RunConsole, console=console)),
        ):
            status = experiment.run(config, [], ["scripts/bench.py"])
    if status != "completed":
        errors = [file.read_text() for file in Path(config.paths.outputs).rglob("error.txt")]
        raise RuntimeError("\n".join([f"the run to be measured ended as {status}", *errors]))
