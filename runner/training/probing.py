"""Running probes during training: when, on which batches, and where their results go."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.data.dataset import TrainBatches
from runner.distributed.collectives import is_distributed, rank
from runner.files.atomic import make_folder, write_atomically
from runner.layers.classifier import find_classifier
from runner.optim.optimizers import stability_threshold
from runner.probes import Batch, Loss, Measurement
from runner.tracking.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Probe(NamedTuple):
    """A probe: its function, the number of batches that it gets, its settings, and what draws its measurement.

    If `num_batches` is None it gets the run's metrics.jsonl instead, at the end of the run. A function with a parameter
    `loss`, `classifier_weight`, `stability_threshold` or `transform_gradients` gets these too.
    """

    measure: Callable[..., Measurement]
    num_batches: int | None
    settings: Mapping[str, object]
    draw: Callable[[Measurement], Figure] | None = None


class Prober:
    """Runs `probes`, by name, after the optimizer steps `at` and after each `every_epochs`-th epoch.

    A probe always gets the first batches of the first epoch, augmented as in training. Its result goes to `folder` as
    <probe>.npz and <probe>.png, or <probe>-step<n> if there are several moments, and its numbers to a row of metrics
    of the split "probe". A probe that does not suit the model is skipped with a warning.

    All ranks run the probe on the same batches, as a synchronized batch norm needs; rank 0 writes.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        at: Sequence[int],
        every_epochs: int | None,
        train_batches: TrainBatches,
        loss: Loss,
        optimizer: Optimizer,
        folder: Path,
        tracker: Tracker,
        transform_gradients: Callable[[nn.Module], object] = lambda model: None,
    ) -> None:
        self.probes = {name: probe for name, probe in probes.items() if probe.num_batches is not None}
        self.at_the_end = {name: probe for name, probe in probes.items() if probe.num_batches is None}
        self.at = frozenset(at)
        self.every_epochs = every_epochs
        self.loss = loss
        self.optimizer = optimizer
        self.folder = folder
        self.tracker = tracker
        self.transform_gradients = transform_gradients
        most = max((probe.num_batches for probe in self.probes.values()), default=0)
        # before training: loader workers read one epoch at a time
        self.batches: list[Batch] = list(islice(train_batches.epoch(0), most))

    def is_due(self, step: int) -> bool:
        """Whether probes run after `step` optimizer steps."""
        return step in self.at

    def ends_epoch(self, epoch: int) -> bool:
        """Whether probes run after epoch number `epoch`, counted from 1."""
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
        """Run all probes, or those in `left`, on the model, which stays unchanged.

        Removes each from `left` when it is done. `check` is called between batches, and may raise.
        """
        once = len(self.at) == 1 and self.every_epochs is None
        left = list(self.probes) if left is None else left
        loss = _with_check(self.loss, check)
        while left:
            name = left[0]
            probe = self.probes[name]
            batches = _CheckedBatches(self.batches[: probe.num_batches], check)
            extra = {
                "loss": loss,
                "classifier_weight": _classifier_weight(model),
                "stability_threshold": stability_threshold(self.optimizer),
                "transform_gradients": self.transform_gradients,
            }
            asked = extra.keys() & inspect.signature(probe.measure).parameters
            try:
                with torch.compiler.set_stance("force_eager"):  # else hooks recompile a compiled model
                    measurement = probe.measure(model, batches, **{key: extra[key] for key in asked}, **probe.settings)
            except ValueError as error:
                self.tracker.message(f"probe {name}: {error}", "warning")
            else:
                numbers = {f"{name}/{key}": value for key, value in measurement.numbers.items()}
                self.tracker.log({"step": step, "epoch": epoch, "split": "probe", **numbers})
                self._write(name, measurement, step=step, file=name if once else f"{name}-step{step}")
            left.pop(0)

    def finish(self, metrics: Path, *, step: int) -> None:
        """Run the probes of the run's metrics, if there are any metrics."""
        for name, probe in self.at_the_end.items():
            if metrics.is_file():
                self._write(name, probe.measure(metrics, **probe.settings), step=step, file=name)

    def _write(self, name: str, measurement: Measurement, *, step: int, file: str) -> None:
        if rank() > 0:
            return
        make_folder(self.folder)
        measurement.save(self.folder / f"{file}.npz")
        draw = {**self.probes, **self.at_the_end}[name].draw
        if draw is None:
            return
        picture = self.folder / f"{file}.png"
        try:
            figure = draw(measurement)
        except ValueError as error:
            self.tracker.message(f"probe {name}: {error}", "warning")
            return
        write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=150))
        self.tracker.figure(name, picture, step=step)


class _CheckedBatches(list):
    """Batches between which `check` is called."""

    def __init__(self, batches: Sequence[Batch], check: Callable[[], object]) -> None:
        super().__init__(batches)
        self.check = check

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.check()
            yield batch


def _with_check(loss: Loss, check: Callable[[], object]) -> Loss:
    """The loss, with `check` before it: a probe may compute it often for one batch."""
    if is_distributed():  # no collectives within torch.func transforms
        return loss

    def call(*args: Tensor, **options: object) -> Tensor:
        check()
        return loss(*args, **options)

    return call


def _classifier_weight(model: nn.Module) -> str | None:
    """The name of the classifier's weight, which adaptive gradient clipping excludes."""
    try:
        classifier = find_classifier(model)
    except ValueError:
        return None
    return next((name for name, parameter in model.named_parameters() if parameter is classifier.weight), None)
