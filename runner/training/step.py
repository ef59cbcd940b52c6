"""One optimizer step: the micro-batches of a batch, forward and backward, the methods, the update."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from runner.distributed.collectives import all_reduce_sum
from runner.methods.method import Method
from runner.training.accumulator import MetricAccumulator
from runner.training.divergence import FirstNonFinite, gradient_norm
from runner.training.ema import Ema
from runner.training.precision import Precision
from runner.training.tasks import Task


class OptimizerStep:
    """Takes optimizer steps on a model; what is measured on the way is added to `sums` and shown to `non_finite`.

    `forward_model` is what is called: the model, or torch's wrapper that averages the gradients over the ranks. With
    `may_skip` the host looks at every step, and one with a loss or gradient that is not finite changes nothing: the
    weights, the optimizer's state, the running statistics and the average of the weights stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        forward_model: nn.Module,
        optimizer: Optimizer,
        methods: Mapping[str, Method],
        *,
        task: Task,
        precision: Precision,
        sums: MetricAccumulator,
        non_finite: FirstNonFinite,
        num_classes: int,
        parts: int = 1,
        ema: Ema | None = None,
        may_skip: bool = False,
    ) -> None:
        self.model = model
        self.forward_model = forward_model
        self.optimizer = optimizer
        self.methods = methods
        self.task = task
        self.precision = precision
        self.sums = sums
        self.non_finite = non_finite
        self.num_classes = num_classes
        self.parts = parts
        self.ema = ema
        self.may_skip = may_skip
        self.loss_options = {key: value for method in methods.values() for key, value in method.loss_options().items()}

    def __call__(self, images: Tensor, targets: Tensor, *, number: int, progress: float) -> bool:
        """Take step `number`, counted from 1, at the share `progress` of the training; whether it was taken."""
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self.may_skip else []
        for method in self.methods.values():
            method.on_step(progress)
            images, targets = method.transform_batch(images, targets, self.num_classes)
        self.optimizer.zero_grad(set_to_none=True)
        loss, seen = self._backward(images, targets)
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        on_cpu = self.precision.device.type == "cpu"
        norm, max_abs_grad = gradient_norm(self.model.parameters(), may_wait=on_cpu)
        scale = scaler.scale(torch.ones((), device=loss.device)) if scaler.is_enabled() else None
        wrong = self.non_finite.look(number, loss, max_abs_grad, scale)
        if self.may_skip and all_reduce_sum(wrong.double()).any():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self.optimizer.zero_grad(set_to_none=True)
            scaler.update()
            return False
        for part in seen:
            self.sums.add(*part)
        metrics = {"gradient_norm": norm}
        for name, method in self.methods.items():
            metrics |= {f"{name}/{key}": value for key, value in method.transform_gradients(self.model).items()}
        self.sums.add_step(metrics)
        scaler.step(self.optimizer)
        scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        return True

    def _backward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """The gradient of the batch's loss, averaged over the ranks.

        Returns the sum of this rank's losses, and of each micro-batch what is to be added to the sums if the step is
        taken; where that is certain it has been added already, and its logits are let go.
        """
        total, seen = torch.zeros((), device=images.device), []
        parts = list(zip(images.chunk(self.parts), targets.chunk(self.parts), strict=True))
        for number, (part_images, part_targets) in enumerate(parts, start=1):
            with self._gradients_averaged(number == len(parts)):
                with self.precision.autocast():
                    logits = self.forward_model(part_images)
                logits = logits.float()
                loss = self.task.loss(logits, part_targets, **self.loss_options)
                share = self.task.share(part_targets, targets)
                self.precision.scaler.scale(loss * share).backward()
            total += loss.detach()
            seen.append((loss.detach(), logits.detach(), part_targets))
            if not self.may_skip:
                self.sums.add(*seen.pop())
        return total, seen

    def _gradients_averaged(self, now: bool) -> AbstractContextManager:
        """Ranks speak to each other once a step, in the backward pass of the last micro-batch."""
        if now or not isinstance(self.forward_model, DistributedDataParallel):
            return nullcontext()
        return self.forward_model.no_sync()
