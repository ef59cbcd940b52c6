"""The loss of a batch and its gradients, as the probes take them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.probes.probe import Batch, Loss


def listed(batches: Iterable[Batch]) -> list[Batch]:
    """The batches as a list. Raises ValueError if there is none."""
    batches = list(batches)
    if not batches:
        raise ValueError("batches: there is none to measure. Give at least one pair of images and targets.")
    return batches


def batch_loss(model: nn.Module, batch: Batch, loss: Loss) -> Tensor:
    """The loss of the batch, with logits in float32, or in float64 if the model computes in it."""
    images, targets = batch
    return loss(at_least_float32(model(images)), targets)


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits in float32, others as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def loss_and_gradients(model: nn.Module, batch: Batch, loss: Loss) -> tuple[float, dict[str, Tensor]]:
    """The loss of the batch and the gradients by the parameters' names, without `.grad`.

    Parameters that require no gradient or did not take part are left out.
    """
    parameters = trained_parameters(model)
    value = batch_loss(model, batch, loss)
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    by_name = zip(parameters, gradients, strict=True)
    return value.item(), {name: gradient for name, gradient in by_name if gradient is not None}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name. Raises ValueError if there is none."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError(
            f"probe: no parameter of a {type(model).__name__} needs a gradient. Set requires_grad on some."
        )
    return parameters
