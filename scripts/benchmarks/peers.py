"""How other libraries do the same things, written down anew from what they are known to compute: for timing only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


class ChunkedBatchNorm2d(nn.BatchNorm2d):
    """Ghost batch norm as a loop of batch norm calls over chunks, joined by `cat`."""

    ghost_batch_size = 16

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(ChunkedBatchNorm2d, self).forward(chunk) for chunk in x.split(self.ghost_batch_size)])


def chunk_batch_norms(model: nn.Module, ghost_batch_size: int) -> int:
    """Turn batch norms into chunk loops; returns their number."""
    norms = _turned(model, nn.BatchNorm2d, ChunkedBatchNorm2d)
    for norm in norms:
        norm.ghost_batch_size = ghost_batch_size
    return len(norms)


@torch.no_grad()
def clip_each_parameter(parameters: Iterable[Tensor], clip: float) -> None:
    """Adaptive clipping as Composer does it: a few calls for each parameter, no floor of the weight norm."""
    for parameter in parameters:
        grad = parameter.grad
        dims = tuple(range(1, parameter.ndim)) if parameter.ndim > 1 else None
        weight_norm = torch.linalg.vector_norm(parameter, 2, dim=dims, keepdim=dims is not None)
        grad_norm = torch.linalg.vector_norm(grad, 2, dim=dims, keepdim=dims is not None)
        grad.mul_((clip * weight_norm / grad_norm).nan_to_num_(nan=1.0).clamp_(max=1.0))


class BatchNormCallConv2d(nn.Conv2d):
    """Weight standardization by a batch norm call on the weight, seen as one sample with a channel a filter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-5)
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


def standardize_by_batch_norm_calls(model: nn.Module) -> int:
    """Turn convolutions into `BatchNormCallConv2d`; returns their number."""
    return len(_turned(model, nn.Conv2d, BatchNormCallConv2d))


class _Standardize(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        var, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return (weight - mean) / torch.sqrt(var + 1e-5)


def standardize_by_parametrization(model: nn.Module) -> int:
    """Weight standardization through `torch.nn.utils.parametrize`."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions:
        parametrize.register_parametrization(conv, "weight", _Standardize(), unsafe=True)
    return len(convolutions)


def _turned(model: nn.Module, kind: type[nn.Module], into: type[nn.Module]) -> list[nn.Module]:
    """The modules of a class, each now of a class that adds no state to it."""
    modules = [module for module in model.modules() if isinstance(module, kind)]
    for module in modules:
        module.__class__ = into
    return modules
