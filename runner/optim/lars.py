"""LARS: stochastic gradient descent with a rate for each layer (You, Gitman & Ginsburg 2017, arXiv 1708.03888)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.config.limits import check, own_ranges


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling. For each parameter tensor w with gradient g, from v = 0,

        rate = trust_coefficient * |w| / (|g| + weight_decay * |w|),    1 where |w| or |g| is 0
        d    = lr * rate * (g + weight_decay * w)
        v   <- momentum * v + d
        w   <- w - v,                with nesterov=True w - (momentum * v + d)

    with the 2-norms over the whole tensor. The learning rate is part of v, as in the paper: a lower one acts on new
    gradients only, where torch's SGD applies it to the whole of v. Nesterov's form is not in the paper.

    A parameter group with `adapt=False` has rate = 1 throughout: plain SGD with momentum, for biases, gains and norm
    parameters, whose norms say nothing about the scale of their gradients.

    A parameter without a gradient is skipped, with its momentum and weight decay. All parameters of a group must have
    one device and dtype. The host does not wait for the device, nor does `GradScaler.step`: if it found an infinity,
    the step changes nothing.

    Raises ValueError for a setting outside its range.

    >>> import torch
    >>> from runner.optim.lars import Lars
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.0, 10.0])
    >>> Lars([weight], lr=2.0, trust_coefficient=0.1).step()  # rate 0.1 * 5 / 10
    >>> weight.data
    tensor([3., 3.])
    """

    _step_supports_amp_scaling = True  # GradScaler sets `found_inf` instead of reading whether to step

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        settings["trust_coefficient"] = trust_coefficient
        check("", own_ranges("lars", "optimizer"), **settings)
        super().__init__(params, {**settings, "nesterov": nesterov, "adapt": True})

    def add_param_group(self, param_group: dict) -> None:
        """Add a group and its momenta, so that every checkpoint holds one for each parameter."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step; `closure` recomputes the loss with its gradients, and `step` returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict) -> None:
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)  # of GradScaler
        if scale is not None:  # the gradients are still scaled
            gradients = torch._foreach_div(gradients, scale)
        changed = [*parameters, *momenta]
        before = [] if found_inf is None else [tensor.clone() for tensor in changed]
        changes = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            torch._foreach_mul_(changes, _rates(parameters, gradients, group))
        torch._foreach_mul_(changes, group["lr"])
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, changes)
        if group["nesterov"]:
            torch._foreach_add_(changes, momenta, alpha=group["momentum"])
        torch._foreach_sub_(parameters, changes if group["nesterov"] else momenta)
        if before:
            torch._foreach_copy_(
                changed, [torch.where(found_inf > 0, *pair) for pair in zip(before, changed, strict=True)]
            )


def _rates(parameters: list[nn.Parameter], gradients: list[Tensor], group: dict) -> list[Tensor]:
    """The local rate of each parameter, as 0-dim tensors."""
    weight_norms = torch.stack(torch._foreach_norm(parameters))
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    rates = group["trust_coefficient"] * weight_norms / (gradient_norms + group["weight_decay"] * weight_norms)
    return list(torch.where((weight_norms > 0) & (gradient_norms > 0), rates, 1.0).unbind())
