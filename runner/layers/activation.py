"""Activations scaled to keep the variance of a normalizer-free network."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.limits import check

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
}

# Brock et al. estimated these from samples: relu's exact value is sqrt(2 / (1 - 1 / pi)) = 1.712859.
GAMMAS = {
    "relu": 1.7139588594436646,
    "gelu": 1.7015043497085571,
    "silu": 1.7881293296813965,
    "tanh": 1.5939117670059204,
    "elu": 1.2716004848480225,
    "leaky_relu": 1.7059034109115601,
    "sigmoid": 4.803835391998291,
}


class ScaledActivation(nn.Module):
    """gamma * act(x), which has variance 1 for x ~ N(0, 1) (Brock et al. 2021, arXiv 2101.08692).

    `activation` is a key of `GAMMAS`; gelu is its tanh form. Raises ValueError for another name.
    """

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        check("model", activation=activation)
        self.activation = activation
        self.gamma = GAMMAS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x) * self.gamma

    def extra_repr(self) -> str:
        return f"{self.activation}, gamma={self.gamma:.6g}"
