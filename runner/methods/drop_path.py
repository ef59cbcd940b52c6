"""Blocks of timm and torchvision, which call a layer of their own for stochastic depth on a branch, before the sum."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torchvision import ops

from runner.layers.stochastic_depth import StochasticDepth
from runner.layers.tracing import leaf_call


class BranchGate(StochasticDepth):
    """A gate in the place of a block's layer of stochastic depth, for any form of the sum and of what follows it.

    The branch is computed even where its gate drops it; then its parameters get no gradient, and its batch norms
    update their statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(x, Proxy):  # a trace would fix the gate
            return leaf_call(self, x)
        out = super().forward(_branch, x)
        return torch.zeros_like(x) if out is None else out


def gate_names(block: nn.Module) -> list[str]:
    """The attributes of a residual block that hold its layers of stochastic depth; none for other modules.

    timm's are `drop_path`, or `drop_path1` and `drop_path2` where the block has two branches: None, an `nn.Identity`
    or a `DropPath`. torchvision's have the class `torchvision.ops.StochasticDepth`. Blocks without a shortcut say so
    by `has_skip` and `use_res_connect`.
    """
    if not getattr(block, "has_skip", True) or not getattr(block, "use_res_connect", True):
        return []
    attributes = vars(block) | block._modules  # None is among the former
    return [name for name, layer in attributes.items() if _is_branch_layer(name, layer)]


def refuse_other_rate(block: nn.Module) -> None:
    """Raise a ValueError if a block of timm drops a branch already."""
    rate = max((getattr(getattr(block, name), "drop_prob", None) or 0 for name in gate_names(block)), default=0)
    if rate > 0:
        raise ValueError(
            f"stochastic_depth: a {type(block).__name__} drops its branch already, with the rate {rate:.3g}. Make the "
            "model with drop_path_rate=0 (model.settings={drop_path_rate: 0}), or leave stochastic_depth out."
        )


def _is_branch_layer(name: str, layer: object) -> bool:
    if isinstance(layer, BranchGate | ops.StochasticDepth):
        return True
    return re.fullmatch(r"drop_path\d?", name) is not None and isinstance(layer, nn.Module | None)


def _branch(x: Tensor) -> Tensor:
    return x
