"""One optimizer step: forward and backward of each micro-batch, the methods, the update."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from runner.distributed.collectives import all_reduce_sum
from runner.training.cuda_graph import WARMUP_CALLS, Graphed, learning_rates
from runner.training.divergence import FirstNonFinite, gradient_norm
from runner.training.state import State


class OptimizerStep:
    """Takes optimizer steps on a training's state, and records in `non_finite` what is not finite.

    With `may_skip` a step whose loss or gradient is not finite changes nothing: not the weights, optimizer state,
    running statistics or averaged weights. The host then waits for the device in every step.

    With `cuda_graph` a step replays two CUDA graphs: of the forward and backward passes, and of what follows up to the
    optimizer's step. The second is recorded a step after the first, when methods have seen where its gradients lie.
    """

    def __init__(
        self,
        state: State,
        *,
        non_finite: FirstNonFinite,
        num_classes: int,
        accumulation_steps: int = 1,
        may_skip: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        self.state = state
        self.non_finite = non_finite
        self.num_classes = num_classes
        self.accumulation_steps = accumulation_steps
        self.may_skip = may_skip
        options = (method.loss_options() for method in state.methods.values())
        self.loss_options = {key: value for each in options for key, value in each.items()}
        self._keeps_logits = may_skip or cuda_graph
        device = state.precision.device
        self._backward_graph = Graphed(self._backward, device) if cuda_graph else None
        self._update_graph = Graphed(self._update, device, warmup_calls=WARMUP_CALLS + 1) if cuda_graph else None

    def __call__(self, images: Tensor, targets: Tensor, *, number: int, progress: float) -> bool:
        """Take step `number`, counted from 1, at the share `progress` of training. Return whether it was taken."""
        state, scaler = self.state, self.state.precision.scaler
        buffers = [buffer.clone() for buffer in state.model.buffers()] if self.may_skip else []
        for method in state.methods.values():
            method.on_step(progress)
            images, targets = method.transform_batch(images, targets, self.num_classes)
        if self._backward_graph is not None and self._update_graph is not None:
            loss, pending_metrics = self._backward_graph(images, targets)
            measured = self._update_graph(loss, number, *(group["lr"] for group in state.optimizer.param_groups))
        else:
            loss, pending_metrics = self._backward(images, targets)
            norm, is_non_finite = self._find_non_finite(loss, number)
            if self.may_skip and all_reduce_sum(is_non_finite.double()).any():
                for buffer, before in zip(state.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                state.optimizer.zero_grad(set_to_none=True)
                scaler.update()
                return False
            measured = self._apply(norm)
        for micro_batch in pending_metrics:
            state.metrics.add(*micro_batch)
        state.metrics.add_step(measured)
        if state.ema is not None:
            state.ema.update(state.model)
        return True

    def _update(self, loss: Tensor, number: Tensor, *rates: Tensor) -> Mapping[str, Tensor]:
        """What follows the backward pass, with tensors for the numbers that change; return what was measured."""
        norm, _ = self._find_non_finite(loss, number)
        return self._apply(norm, rates)

    def _find_non_finite(self, loss: Tensor, number: int | Tensor) -> tuple[Tensor, Tensor]:
        """Unscale the gradients; return their norm, and whether loss and gradients are not finite, (2,) bool."""
        state, scaler = self.state, self.state.precision.scaler
        scaler.unscale_(state.optimizer)
        may_wait = state.precision.device.type == "cpu" and self._update_graph is None
        norm, max_abs_grad = gradient_norm(state.model.parameters(), may_wait=may_wait)
        scale = scaler.scale(torch.ones((), device=loss.device)) if scaler.is_enabled() else None
        return norm, self.non_finite.update(number, loss, max_abs_grad, scale)

    def _apply(self, norm: Tensor, rates: Collection[Tensor] = ()) -> Mapping[str, Tensor]:
        """Let the methods change the gradients and take the optimizer's step; return what was measured."""
        state, scaler = self.state, self.state.precision.scaler
        measured = {"gradient_norm": norm}
        for name, method in state.methods.items():
            measured |= {f"{name}/{key}": value for key, value in method.transform_gradients(state.model).items()}
        with learning_rates(state.optimizer, rates):
            scaler.step(state.optimizer)
        scaler.update()
        return measured

    def _backward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Compute the gradient of the batch's loss, averaged over the ranks.

        Returns the sum of this rank's micro-batch losses and, if the step may still be skipped or is recorded, each
        micro-batch's (loss, logits, targets), not yet counted.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        total, pending_metrics = torch.zeros((), device=images.device), []
        parts = (images.chunk(self.accumulation_steps), targets.chunk(self.accumulation_steps))
        for number, (part_images, part_targets) in enumerate(zip(*parts, strict=True), start=1):
            with self._gradient_sync(number == len(parts[0])):
                with self.state.precision.autocast():
                    logits = self.state.forward_model(part_images)
                logits = logits.float()
                loss = self.state.task.loss(logits, part_targets, **self.loss_options)
                weight = self.state.task.loss_weight(part_targets, targets)
                self.state.precision.scaler.scale(loss * weight).backward()
            total += loss.detach()
            pending_metrics.append((loss.detach(), logits.detach(), part_targets))
            if not self._keeps_logits:
                self.state.metrics.add(*pending_metrics.pop())  # frees the logits
        return total, pending_metrics

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager:
        """Reduce gradients over the ranks once a step, in the last micro-batch's backward pass."""
        if is_last or not isinstance(self.state.forward_model, DistributedDataParallel):
            return nullcontext()
        return self.state.forward_model.no_sync()
