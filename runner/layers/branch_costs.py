"""What the residual branches of a model cost, beside the whole of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from runner.layers.preserve_state import preserve_state
from runner.layers.stochastic_depth import StochasticDepth


def branch_costs(model: nn.Module, gates: Sequence[StochasticDepth], example_input: Tensor) -> list[float]:
    """The multiply-adds in the branch of each gate, as a share of those of the model's forward pass."""
    with preserve_state(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example_input)
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    return [counts.get(names[gate], 0) / max(counter.get_total_flops(), 1) for gate in gates]
