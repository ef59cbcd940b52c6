"""The order in which a model runs its layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state


def execution_order(
    model: nn.Module, layers: Iterable[nn.Module], example_input: Tensor | tuple[Tensor, ...]
) -> list[nn.Module]:
    """The runs of `layers` in `model(example_input)`, or `model(*example_input)` for a tuple, in their order.

    A layer appears once for each run. The model runs in evaluation mode, without gradients, within `preserve_state`.
    """
    runs: list[nn.Module] = []
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    with preserve_state(model), torch.no_grad():
        model.eval()
        for layer in layers:
            layer.register_forward_pre_hook(lambda layer, _inputs: runs.append(layer))
        model(*inputs)
    return runs
