"""The order in which a model runs its layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state


def execution_order(
    model: nn.Module, layers: Iterable[nn.Module], example_input: Tensor | tuple[Tensor, ...]
) -> list[nn.Module]:
    """The runs of `layers` in `model(example_input)` or `model(*example_input)`, in evaluation mode, in their order.

    A layer that runs several times stands several times in the list, one that does not run is absent. The model takes
    no gradients, and `preserve_state` puts it back.
    """
    runs: list[nn.Module] = []
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    with preserve_state(model), torch.no_grad():
        model.eval()
        for layer in layers:
            layer.register_forward_pre_hook(lambda layer, _inputs: runs.append(layer))
        model(*inputs)
    return runs
