"""The state of a training run: what an optimizer step changes, saved in last.pt and restored bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.data.sampling import mixed_seed
from runner.distributed.collectives import (
    all_gather_object,
    barrier,
    floating_buffers,
    is_distributed,
    mean_buffers,
    rank,
    world_size,
)
from runner.methods.method import Method
from runner.training.checkpoint import (
    PREVIOUS,
    random_state,
    restore_model,
    restore_random_state,
    save_checkpoint,
)
from runner.training.ema import Ema
from runner.training.metrics import MetricAccumulator, Snapshot
from runner.training.plan import Progress, TrainingPlan
from runner.training.precision import Precision
from runner.training.tasks import Task


@dataclass
class State:
    """A model in training, with its optimizer, its methods and all else that an optimizer step changes.

    `forward_model` is the model, or its DistributedDataParallel wrapper. `ema` averages the weights; `metrics` sums
    what the steps of an epoch measure.
    """

    model: nn.Module
    optimizer: Optimizer
    methods: Mapping[str, Method]
    task: Task
    precision: Precision
    ema: Ema | None = None
    forward_model: nn.Module | None = None
    metrics: MetricAccumulator = field(init=False)

    def __post_init__(self) -> None:
        self.forward_model = self.forward_model or self.model
        self.metrics = MetricAccumulator(self.task, self.precision.device)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved in best.pt: the average of the weights, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def of_model(self, model: nn.Module, about: dict) -> dict:
        """What an evaluation of `model` needs, including the methods' state (such as warmed-up drop rates)."""
        return {
            "model": _mean_state_dict(model),
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "about": about,
        }

    def save(self, plan: TrainingPlan, progress: Progress, logged: Snapshot) -> None:
        """Write last.pt; the file that was there becomes previous.pt. Call it on all ranks.

        Rank 0 writes it, including the generators and running statistics of each rank.
        """
        checkpoint = {
            **self.of_model(self.model, plan.about),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "sums": self.metrics.state_dict(),
            "logged": asdict(logged),
            "random": random_state(self.precision.device),
            "progress": asdict(progress),
        }
        if self.ema is not None:
            checkpoint["ema"] = {**self.ema.state_dict(), "model": _mean_state_dict(self.ema.model)}
        if is_distributed():
            checkpoint["ranks"] = all_gather_object(self._rank_state())
        if rank() == 0:
            save_checkpoint(plan.last, checkpoint, previous=plan.last.with_name(PREVIOUS))
        barrier()

    def restore(self, checkpoint: Mapping) -> tuple[Progress, Snapshot]:
        """Restore a last.pt, except the optimizer's settings: learning rate, momentum and others are this run's."""
        restore_model(checkpoint, self.model, self.methods)
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": settings})
        _match_strides(self.optimizer)
        if checkpoint["scaler"]:  # else the steps so far were not in fp16
            self.precision.scaler.load_state_dict(checkpoint["scaler"])
        self.metrics.load_state_dict(checkpoint["sums"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"], self.model)
        progress = Progress(**checkpoint["progress"])
        only_rank = {"random": checkpoint["random"], "buffers": {}, "ema_buffers": {}}
        rank_states = checkpoint.get("ranks", [only_rank])
        if len(rank_states) == world_size():
            self._restore_rank_state(rank_states[rank()])
        elif rank() > 0:  # another number of ranks: new generators, and the mean buffers
            torch.manual_seed(mixed_seed(int(checkpoint["random"]["cpu"].sum()), progress.step, rank()))
        else:
            restore_random_state(checkpoint["random"], self.precision.device)
        return progress, Snapshot(**checkpoint["logged"])

    def _rank_state(self) -> dict:
        """This rank's generators, and the running statistics of its own batches."""
        averaged = {} if self.ema is None else floating_buffers(self.ema.model)
        return {
            "random": random_state(self.precision.device),
            "buffers": {name: buffer.cpu() for name, buffer in floating_buffers(self.model).items()},
            "ema_buffers": {name: buffer.cpu() for name, buffer in averaged.items()},
        }

    def _restore_rank_state(self, saved: Mapping) -> None:
        restore_random_state(saved["random"], self.precision.device)
        for model, values in ((self.model, saved["buffers"]), (self.ema and self.ema.model, saved["ema_buffers"])):
            buffers = floating_buffers(model) if values else {}
            for name, value in values.items():
                buffers[name].copy_(value)


def _match_strides(optimizer: Optimizer) -> None:
    """Give each state tensor of a parameter's shape the parameter's memory format.

    A checkpoint keeps strides, so they differ if a run resumes with another memory format. Fused kernels index raw
    memory: on a CPU they would pair a weight with another weight's momentum, on CUDA they raise an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _mean_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state_dict, with running statistics averaged over the ranks."""
    state, means = model.state_dict(), mean_buffers(model)
    return {**state, **{name: value for name, value in means.items() if name in state}}
