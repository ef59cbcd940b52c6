"""Optimizers, the parameter groups that weight decay needs, and the learning rate of a batch size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from runner.layers.surgery import NORM_LAYERS
from runner.optim.lars import Lars

# what each keeps of a parameter: tensors of its size, and AdamW a count of steps
OPTIMIZER_STATES = {"sgd": {"momentum_buffer"}, "lars": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_norm_and_bias: bool = False) -> list[dict]:
    """Two groups: weights; and biases, gains and normalization parameters, without weight decay by default.

    The second has the parameters of normalization layers and those of fewer than two dimensions (biases, gains of
    scaled weight standardization, skip gains). Every parameter is in exactly one group; group and place do not depend
    on the settings, so that a checkpoint of the optimizer fits. `norm_and_bias` marks the second group. An empty group
    is left out.
    """
    weights: dict[int, nn.Parameter] = {}
    others: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            is_other = isinstance(module, NORM_LAYERS) or parameter.ndim < 2
            (others if is_other else weights)[id(parameter)] = parameter
    only_weights = [parameter for key, parameter in weights.items() if key not in others]
    decay_of_others = weight_decay if decay_norm_and_bias else 0.0
    groups = [
        {"params": only_weights, "weight_decay": weight_decay, "norm_and_bias": False},
        {"params": list(others.values()), "weight_decay": decay_of_others, "norm_and_bias": True},
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return [group for group in groups if group["params"]]


def scaled_lr(lr: float, *, global_batch_size: int, lr_batch_size: int | None) -> float:
    """lr * global_batch_size / lr_batch_size, the linear scaling rule (Goyal et al. 2017, arXiv 1706.02677).

    `lr_batch_size` is the batch size that `lr` is meant for; None returns `lr`.

    >>> from runner.optim.optimizers import scaled_lr
    >>> scaled_lr(0.1, global_batch_size=1024, lr_batch_size=256)
    0.4
    """
    return lr if lr_batch_size is None else lr * global_batch_size / lr_batch_size


def stability_threshold(optimizer: Optimizer) -> float:
    """The largest eigenvalue of the loss's Hessian at which steps on a quadratic loss do not grow; NaN if not known.

    At the learning rate lr of the next step and momentum m (Cohen et al. 2021, arXiv 2103.00065),

        SGD                        2 (1 + m) / lr
        SGD, Nesterov momentum     2 (1 + m) / ((1 + 2 m) lr)

    for steps along the gradient of the whole loss. Weight decay w, left out here, lowers it by w.
    """
    if type(optimizer) is not SGD:
        return math.nan
    group = optimizer.param_groups[0]
    lr, momentum = float(group["lr"]), group["momentum"]
    return 2 * (1 + momentum) / (lr * (1 + 2 * momentum * group["nesterov"])) if lr else math.inf


def states_per_parameter(optimizer: Optimizer) -> int:
    """How many tensors of a parameter's size the optimizer keeps for it, found by a step with gradients of zero."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shapes = [value.shape for value in optimizer.state[parameters[0]].values() if isinstance(value, Tensor)]
    return shapes.count(parameters[0].shape)


def sgd(groups: list[dict], *, lr: float, momentum: float = 0.9, nesterov: bool = True) -> Optimizer:
    """SGD with momentum, fused.

    The momenta start as zeros, which gives the same bits: torch's fused step fails if some parameters have no gradient
    in the first step, as in a block that stochastic depth dropped.
    """
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(groups: list[dict], *, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), fused."""
    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


def lars(
    groups: list[dict], *, lr: float, momentum: float = 0.9, nesterov: bool = False, trust_coefficient: float = 0.001
) -> Optimizer:
    """LARS (see `runner.optim.lars`) over the groups of `parameter_groups`; only the weights get rates of their own."""
    groups = [{**group, "adapt": not group["norm_and_bias"]} for group in groups]
    return Lars(groups, lr=lr, momentum=momentum, nesterov=nesterov, trust_coefficient=trust_coefficient)
