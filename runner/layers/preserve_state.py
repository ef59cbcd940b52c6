"""Running a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from runner.layers.stochastic_depth import StochasticDepth

IDENTITIES_IN_EVALUATION = ("StochasticDepth", "DropPath")  # by class name: torchvision's, timm's


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore `model` bit for bit at the end of this context, whatever happens inside.

    It restores the values of parameters and buffers, gradients, `requires_grad`, all attributes of modules (training
    flags, hooks, drop rates, submodules, replaced methods), the generators that modules hold, and torch's global
    generators on the CPU and on the model's devices. Inside, gradients start as None and are recorded, even under the
    caller's `no_grad`. The context holds a copy of the model's parameters and buffers.
    """
    modules = list(model.modules())
    attributes = [(module, dict(vars(module))) for module in modules]
    contents = [
        (content, content.copy())
        for _, saved in attributes
        for content in saved.values()
        if isinstance(content, (dict, set, list))
    ]
    held = [held for module in modules for held in _held_by(module)]
    generators = [(generator, generator.get_state()) for generator in held if isinstance(generator, torch.Generator)]
    tensors = {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}.values()
    values = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        for module, saved in attributes:
            vars(module).clear()
            vars(module).update(saved)
        for content, copy in contents:
            _refill(content, copy)
        for tensor, value, requires_grad in values:
            tensor.data.copy_(value)  # .data keeps the graph of an earlier forward valid
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for generator, state in generators:
            generator.set_state(state)


def use_batch_statistics(model: nn.Module) -> None:
    """Put `model` into training mode, where norms use the batch's statistics, without dropout and stochastic depth.

    A measurement then sees every layer and is deterministic. Call this inside `preserve_state`.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, StochasticDepth):  # in evaluation it would scale its branch
            module.warm_up(0.0)
        elif isinstance(module, _DropoutNd) or type(module).__name__ in IDENTITIES_IN_EVALUATION:
            module.eval()


def _held_by(module: nn.Module) -> list[Any]:
    return [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]


def _refill(content: dict | set | list, copy: dict | set | list) -> None:
    """Give `content` the elements of `copy`; the object stays, since handles of hooks refer to it."""
    content.clear()
    if isinstance(content, list):
        content.extend(copy)
    else:
        content.update(copy)
