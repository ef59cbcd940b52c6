"""Training metrics as sums on the device, read only now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runner.distributed.collectives import all_reduce_sum, rank, world_size
from runner.training.tasks import Task


@dataclass(frozen=True)
class Snapshot:
    """One reading of `MetricAccumulator`; `methods` are of each metric its sum and the number of steps in it."""

    images: int = 0
    steps: int = 0
    loss: float = 0.0
    counts: tuple[int, ...] = ()
    methods: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def since(self, before: Snapshot) -> Snapshot:
        """What came between the reading `before` and this one."""
        counts = before.counts or (0,) * len(self.counts)
        methods = {
            name: (total - before.methods.get(name, (0, 0))[0], steps - before.methods.get(name, (0, 0))[1])
            for name, (total, steps) in self.methods.items()
        }
        return Snapshot(
            self.images - before.images,
            self.steps - before.steps,
            self.loss - before.loss,
            tuple(now - then for now, then in zip(self.counts, counts, strict=True)),
            methods,
        )


class MetricAccumulator:
    """Sums over the images and steps of an epoch; adding to them never makes the host wait for the device.

    Each rank adds what it sees; what is read, and kept in a checkpoint, is of all ranks together.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.images = 0
        self.steps = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.counts = self.task.new_counts(self.device)
        self.methods: dict[str, Tensor] = {}  # of each metric its sum, and the number of steps in it

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a micro-batch: its mean loss, its logits and its targets."""
        self.images += len(targets)
        self.loss += loss.double() * len(targets)
        self.task.count(self.counts, logits, targets)

    def add_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Add an optimizer step with what the methods measured in it.

        A value that is not finite is left out of its mean: where a loss scale overflows, the step is skipped too.
        """
        self.steps += 1
        for name, value in metrics.items():
            value, finite = value.double(), value.isfinite().double()
            added = torch.stack([torch.where(finite > 0, value, 0.0), finite])
            self.methods[name] = self.methods.get(name, 0) + added

    def read(self) -> Snapshot:
        """The sums as numbers: here the host waits for the device, once. To be called on all ranks together."""
        parts = [self.loss.view(1), self.counts.double(), *self.methods.values()]
        loss, *values = all_reduce_sum(torch.cat(parts)).tolist()  # counts below 2^53 are exact
        counts, values = values[: len(self.counts)], values[len(self.counts) :]
        pairs = zip(values[::2], values[1::2], strict=True)
        methods = dict(zip(self.methods, pairs, strict=True))
        return Snapshot(self.images * world_size(), self.steps, loss, tuple(map(int, counts)), methods)

    def means(self, totals: Snapshot) -> dict[str, float]:
        """Loss per image, scores, and the methods' metrics per step; a metric is NaN if it was finite in no step.

        Empty without an image: every step was skipped.
        """
        if totals.images == 0:
            return {}
        return {
            "loss": totals.loss / totals.images,
            **self.task.scores(totals.counts),
            **{name: total / steps if steps else math.nan for name, (total, steps) in totals.methods.items()},
        }

    def state_dict(self) -> dict:
        """For a checkpoint in the middle of an epoch. To be called on all ranks together."""
        return {
            "images": self.images * world_size(),
            "steps": self.steps,
            "loss": all_reduce_sum(self.loss),
            "counts": all_reduce_sum(self.counts),
            "methods": {name: all_reduce_sum(value) for name, value in self.methods.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave, be it of more ranks or of fewer: the first one takes it all."""
        self.images, self.steps = state["images"] // world_size(), state["steps"]
        share = 1 if rank() == 0 else 0
        self.loss, self.counts = share * state["loss"].to(self.device), share * state["counts"].to(self.device)
        self.methods = {name: share * value.to(self.device) for name, value in state["methods"].items()}
