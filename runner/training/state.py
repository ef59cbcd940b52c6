"""All that a training run is made of, as one checkpoint: written, and taken up again to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.data.seeds import mixed_seed
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
from runner.training.accumulator import MetricAccumulator, Snapshot
from runner.training.checkpoint import (
    PREVIOUS,
    load_latest,
    random_state,
    restore_model,
    restore_random_state,
    save_checkpoint,
)
from runner.training.ema import Ema
from runner.training.plan import Plan, Progress
from runner.training.precision import Precision


@dataclass(frozen=True)
class State:
    """What `last.pt` is made of. Of several ranks the first writes it, with what each of them has of its own."""

    model: nn.Module
    optimizer: Optimizer
    methods: Mapping[str, Method]
    precision: Precision
    sums: MetricAccumulator
    ema: Ema | None
    plan: Plan

    def of_model(self, model: nn.Module) -> dict:
        """What it takes to evaluate `model`: a method's state may say how (the drop rates of a warm-up)."""
        return {
            "model": _with_means(model),
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "about": self.plan.about,
        }

    def save(self, progress: Progress, logged: Snapshot) -> None:
        """Write last.pt; the one that was there becomes previous.pt. To be called on all ranks together."""
        checkpoint = {
            **self.of_model(self.model),
            **({} if self.ema is None else {"ema": {**self.ema.state_dict(), "model": _with_means(self.ema.model)}}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "sums": self.sums.state_dict(),
            "logged": asdict(logged),
            "random": random_state(self.precision.device),
            "progress": asdict(progress),
        }
        if is_distributed():
            checkpoint["ranks"] = all_gather_object(self._own())
        if rank() == 0:
            save_checkpoint(self.plan.last, checkpoint, previous=self.plan.last.with_name(PREVIOUS))
        barrier()

    def load_last(self) -> tuple[Progress, Snapshot]:
        """Take up the last checkpoint again. There must be one."""
        latest = load_latest(self.plan.last, self.precision.device)
        assert latest is not None
        return self.restore(latest.checkpoint)

    def restore(self, checkpoint: Mapping) -> tuple[Progress, Snapshot]:
        """Take up a last.pt. Learning rate, momentum and the like are this run's own settings, not the checkpoint's."""
        restore_model(checkpoint, self.model, self.methods)
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": settings})
        _match_strides(self.optimizer)
        if checkpoint["scaler"]:  # else the steps so far were not in fp16
            self.precision.scaler.load_state_dict(checkpoint["scaler"])
        self.sums.load_state_dict(checkpoint["sums"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"], self.model)
        progress = Progress(**checkpoint["progress"])
        own = checkpoint.get("ranks", [{"random": checkpoint["random"], "buffers": {}, "ema_buffers": {}}])
        if len(own) == world_size():
            self._restore_own(own[rank()])
        elif rank() > 0:  # more ranks than before, or fewer: each draws something else, and starts from the means
            torch.manual_seed(mixed_seed(int(checkpoint["random"]["cpu"].sum()), progress.step, rank()))
        else:
            restore_random_state(checkpoint["random"], self.precision.device)
        return progress, Snapshot(**checkpoint["logged"])

    def _own(self) -> dict:
        """What a rank has that the others have not: its generators, and running statistics of its own batches."""
        averaged = {} if self.ema is None else floating_buffers(self.ema.model)
        return {
            "random": random_state(self.precision.device),
            "buffers": {name: buffer.cpu() for name, buffer in floating_buffers(self.model).items()},
            "ema_buffers": {name: buffer.cpu() for name, buffer in averaged.items()},
        }

    def _restore_own(self, own: Mapping) -> None:
        restore_random_state(own["random"], self.precision.device)
        for model, saved in ((self.model, own["buffers"]), (self.ema and self.ema.model, own["ema_buffers"])):
            buffers = floating_buffers(model) if saved else {}
            for name, value in saved.items():
                buffers[name].copy_(value)


def _match_strides(optimizer: Optimizer) -> None:
    """Lay each state tensor of a parameter's shape out in memory as the parameter.

    A checkpoint keeps strides, so after a resume with another memory format the two differ. Fused kernels index raw
    memory: they would pair a weight with another weight's momentum on a CPU, and raise an error on CUDA.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _with_means(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, its running statistics as the means over the ranks."""
    state, means = model.state_dict(), mean_buffers(model)
    return {**state, **{name: value for name, value in means.items() if name in state}}
