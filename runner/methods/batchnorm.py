"""The model's own batch norm, unchanged (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.methods.method import Method


class BatchNormMethod(Method):
    """Changes nothing; counts the model's batch norms, possibly 0."""

    capturable = True
    counted = "batch norms, left as they are"

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return sum(isinstance(module, _BatchNorm) for module in model.modules())
