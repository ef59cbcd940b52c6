"""Blocks with timm's convention for stochastic depth: `forward` calls `drop_path` on the branch, before the sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from runner.layers.stochastic_depth import StochasticDepth
from runner.layers.tracing import leaf_call


class DropPathGate(nn.Module):
    """A gate in the place of a block's `drop_path`, for any form of the sum and of what follows it.

    The branch is computed even where its gate drops it; then its parameters get no gradient, and its batch norms
    update their statistics.
    """

    def __init__(self, gate: StochasticDepth) -> None:
        super().__init__()
        self.gate = gate
        self.train(gate.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(x, Proxy):  # a trace would fix the gate
            return leaf_call(self, x)
        out = self.gate(_branch, x)
        return torch.zeros_like(x) if out is None else out


def has_drop_path(module: nn.Module) -> bool:
    """Whether `module` is a residual block with the attribute `drop_path`: None, or a layer such as `nn.Identity`.

    timm's blocks without a shortcut say so by `has_skip`.
    """
    is_layer = isinstance(getattr(module, "drop_path", ()), nn.Module | None)
    return is_layer and getattr(module, "has_skip", True)


def refuse_other_rate(block: nn.Module) -> None:
    """Raise a ValueError if the block's `drop_path` drops already."""
    rate = getattr(getattr(block, "drop_path", None), "drop_prob", None) or 0
    if rate > 0:
        raise ValueError(
            f"stochastic_depth: a {type(block).__name__} drops its branch already, with the rate {rate:.3g}. Make the "
            "model with drop_path_rate=0, or leave stochastic_depth out."
        )


def _branch(x: Tensor) -> Tensor:
    return x
