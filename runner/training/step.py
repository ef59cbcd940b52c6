"""One optimizer step: forward and backward of each micro-batch, the methods, the update."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from runner.distributed.collectives import all_reduce_sum
from runner.methods.method import Method
from runner.training.divergence import FirstNonFinite, gradient_norm
from runner.training.ema import Ema
from runner.training.metrics import MetricAccumulator
from runner.training.precision import Precision
from runner.training.tasks import Task


class OptimizerStep:
    """Takes optimizer steps on a model, adding to `metrics` and `non_finite`.

    `forward_model` is the model, or its DistributedDataParallel wrapper. With `may_skip` a step whose loss or gradient
    is not finite changes nothing: not the weights, optimizer state, running statistics or averaged weights. The host
    then waits for the device in every step.
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
        metrics: MetricAccumulator,
        non_finite: FirstNonFinite,
        num_classes: int,
        accumulation_steps: int = 1,
        ema: Ema | None = None,
        may_skip: bool = False,
    ) -> None:
        self.model = model
        self.forward_model = forward_model
        self.optimizer = optimizer
        self.methods = methods
        self.task = task
        self.precision = precision
        self.metrics = metrics
        self.non_finite = non_finite
        self.num_classes = num_classes
        self.accumulation_steps = accumulation_steps
        self.ema = ema
        self.may_skip = may_skip
        self.loss_options = {key: value for method in methods.values() for key, value in method.loss_options().items()}

    def __call__(self, images: Tensor, targets: Tensor, *, number: int, progress: float) -> bool:
        """Take step `number`, counted from 1, at the share `progress` of training. Return whether it was taken."""
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self.may_skip else []
        for method in self.methods.values():
            method.on_step(progress)
            images, targets = method.transform_batch(images, targets, self.num_classes)
        self.optimizer.zero_grad(set_to_none=True)
        loss, pending_metrics = self._backward(images, targets)
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        on_cpu = self.precision.device.type == "cpu"
        norm, max_abs_grad = gradient_norm(self.model.parameters(), may_wait=on_cpu)
        scale = scaler.scale(torch.ones((), device=loss.device)) if scaler.is_enabled() else None
        is_non_finite = self.non_finite.update(number, loss, max_abs_grad, scale)
        if self.may_skip and all_reduce_sum(is_non_finite.double()).any():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self.optimizer.zero_grad(set_to_none=True)
            scaler.update()
            return False
        for micro_batch in pending_metrics:
            self.metrics.add(*micro_batch)
        measured = {"gradient_norm": norm}
        for name, method in self.methods.items():
            measured |= {f"{name}/{key}": value for key, value in method.transform_gradients(self.model).items()}
        self.metrics.add_step(measured)
        scaler.step(self.optimizer)
        scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        return True

    def _backward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Compute the gradient of the batch's loss, averaged over the ranks.

        Returns the sum of this rank's micro-batch losses and, if the step may still be skipped, each micro-batch's
        (loss, logits, targets), not yet counted.
        """
        total, pending_metrics = torch.zeros((), device=images.device), []
        parts = (images.chunk(self.accumulation_steps), targets.chunk(self.accumulation_steps))
        for number, (part_images, part_targets) in enumerate(zip(*parts, strict=True), start=1):
            with self._gradient_sync(number == len(parts[0])):
                with self.precision.autocast():
                    logits = self.forward_model(part_images)
                logits = logits.float()
                loss = self.task.loss(logits, part_targets, **self.loss_options)
                weight = self.task.loss_weight(part_targets, targets)
                self.precision.scaler.scale(loss * weight).backward()
            total += loss.detach()
            pending_metrics.append((loss.detach(), logits.detach(), part_targets))
            if not self.may_skip:
                self.metrics.add(*pending_metrics.pop())  # frees the logits
        return total, pending_metrics

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager:
        """Reduce gradients over the ranks once a step, in the last micro-batch's backward pass."""
        if is_last or not isinstance(self.forward_model, DistributedDataParallel):
            return nullcontext()
        return self.forward_model.no_sync()
