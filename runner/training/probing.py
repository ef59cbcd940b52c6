"""Probes on the way of a run: when one is due, what it is given, where its result goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from runner.data.dataset import TrainBatches
from runner.distributed.collectives import is_distributed, rank
from runner.figures import NAMES, draw
from runner.files.atomic import make_folder, write_atomically
from runner.layers.classifier import find_classifier
from runner.probes import Batch, Loss, Measurement
from runner.tracking.tracker import Tracker


class Probe(NamedTuple):
    """A probe of a run: the function that measures, how many batches it is given, and its settings.

    One without a number of batches is given the run's metrics.jsonl instead, at the end of the run. One with a
    parameter `loss` or `classifier_weight` is given these too.
    """

    measure: Callable[..., Measurement]
    num_batches: int | None
    settings: Mapping[str, object]


class Prober:
    """Measures the model after the optimizer steps `at`, and after each `every_epochs`-th epoch.

    Each of `probes`, by their names, is given the first batches of the first epoch, augmented as in training, the same
    ones each time. A result is written to `folder` as
    <probe>.npz and <probe>.png, or <probe>-step<n> where there are several moments; its numbers become a row of metrics
    with the split "probe". A probe that does not suit the model says so and is left out; the run goes on.

    All ranks measure, on the same batches, since a synchronized batch norm needs them all; the first one writes.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        at: Sequence[int],
        every_epochs: int | None,
        train_batches: TrainBatches,
        loss: Loss,
        folder: Path,
        tracker: Tracker,
    ) -> None:
        self.probes = {name: probe for name, probe in probes.items() if probe.num_batches is not None}
        self.at_the_end = {name: probe for name, probe in probes.items() if probe.num_batches is None}
        self.at = frozenset(at)
        self.every_epochs = every_epochs
        self.loss = loss
        self.folder = folder
        self.tracker = tracker
        most = max((probe.num_batches for probe in self.probes.values()), default=0)
        # drawn before training begins, since loader processes are on one epoch at a time
        self.batches: list[Batch] = list(islice(train_batches.epoch(0), most))

    def is_due(self, step: int) -> bool:
        """Whether there is something to measure after `step` optimizer steps."""
        return step in self.at

    def ends_epoch(self, epoch: int) -> bool:
        """Whether there is something to measure after epoch number `epoch`, counted from 1."""
        return self.every_epochs is not None and epoch % self.every_epochs == 0

    def measure(
        self,
        model: nn.Module,
        *,
        step: int,
        epoch: int,
        left: list[str] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """Run every probe, or those that are `left`, on the model, which stays as it is.

        What is done is taken out of `left`. `check` is called between the batches, and may raise.
        """
        once = len(self.at) == 1 and self.every_epochs is None
        left = list(self.probes) if left is None else left
        loss = _checked(self.loss, check)
        while left:
            name = left[0]
            probe = self.probes[name]
            batches = _Checked(self.batches[: probe.num_batches], check)
            extra = {"loss": loss, "classifier_weight": _classifier_weight(model)}
            asked = extra.keys() & inspect.signature(probe.measure).parameters
            try:
                with torch.compiler.set_stance("force_eager"):  # else a compiled model would be compiled anew for hooks
                    found = probe.measure(model, batches, **{key: extra[key] for key in asked}, **probe.settings)
            except ValueError as error:
                self.tracker.message(f"probe {name}: {error}", "warning")
            else:
                numbers = {f"{name}/{key}": value for key, value in found.numbers.items()}
                self.tracker.log({"step": step, "epoch": epoch, "split": "probe", **numbers})
                self._keep(name, found, step=step, file=name if once else f"{name}-step{step}")
            left.pop(0)

    def finish(self, metrics: Path, *, step: int) -> None:
        """Draw what is made of the run's metrics, if it has come to any."""
        for name, probe in self.at_the_end.items():
            if metrics.is_file():
                self._keep(name, probe.measure(metrics, **probe.settings), step=step, file=name)

    def _keep(self, name: str, found: Measurement, *, step: int, file: str) -> None:
        if rank() > 0:
            return
        make_folder(self.folder)
        found.save(self.folder / f"{file}.npz")
        if name not in NAMES:  # a probe from outside, which has no figure
            return
        picture = self.folder / f"{file}.png"
        figure = draw(name, found)
        write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=150))
        self.tracker.figure(name, picture, step=step)


class _Checked(list):
    """Batches between which `check` is called."""

    def __init__(self, batches: Sequence[Batch], check: Callable[[], object]) -> None:
        super().__init__(batches)
        self.check = check

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.check()
            yield batch


def _checked(loss: Loss, check: Callable[[], object]) -> Loss:
    """The loss, before which `check` is called: a probe may take it often of one batch."""
    if is_distributed():  # it might be called within torch's transformations, where ranks cannot speak to each other
        return loss

    def call(*args: Tensor, **options: object) -> Tensor:
        check()
        return loss(*args, **options)

    return call


def _classifier_weight(model: nn.Module) -> str | None:
    """The name of the weight that adaptive gradient clipping leaves out."""
    try:
        classifier = find_classifier(model)
    except ValueError:
        return None
    return next((name for name, parameter in model.named_parameters() if parameter is classifier.weight), None)
