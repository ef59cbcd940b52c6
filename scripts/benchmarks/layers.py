"""What the methods' layers cost in time and in memory kept for the backward pass, beside other ways."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from runner.layers.norm_relu import norm_relu
from runner.methods import GhostBatchNorm2d, StdConv2d

from .peers import BatchNormCallConv2d, ChunkedBatchNorm2d
from .timing import Arm, kept_for_backward

if TYPE_CHECKING:
    from .methods import MethodScale

CONVS = {"nn.Conv2d": nn.Conv2d, "StdConv2d": StdConv2d, "batch norm call": BatchNormCallConv2d}


def kept_memory(scale: MethodScale) -> dict[str, dict[str, int]]:
    """Bytes kept for the backward pass by a layer, by each way of doing it."""
    shape = scale.layer_shapes[0]
    x = torch.randn(shape, device=scale.device, requires_grad=True)
    small = torch.randn(1, 64, 8, 8, device=scale.device, requires_grad=True)
    return {
        f"ghost batch norm, input {'x'.join(map(str, shape))} in float32": {
            name: kept_for_backward(partial(norm, x), set()) for name, norm in _norms(scale, shape[1]).items()
        },
        "weight standardization, weight 64x64x3x3 in float32, beside input and weight": {
            name: _kept_by_conv(kind(64, 64, 3, bias=False).to(scale.device), small) for name, kind in CONVS.items()
        },
    }


def _kept_by_conv(conv: nn.Conv2d, x: Tensor) -> int:
    return kept_for_backward(partial(conv, x), {tensor.untyped_storage().data_ptr() for tensor in (x, conv.weight)})


class NormReLU(nn.Module):
    """A norm and the ReLU after it, as the models call them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.relu = norm, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu(self.norm, self.relu, x)


def ghost_batch_norm_layer(scale: MethodScale, shape: tuple[int, ...]) -> dict[str, Arm]:
    dtype = torch.bfloat16 if scale.bf16 else torch.float32
    x = torch.randn(shape, device=scale.device, dtype=dtype)
    x = x.contiguous(memory_format=memory_format(scale)).requires_grad_()
    grad = torch.randn_like(x)
    layers = _norms(scale, shape[1])
    layers |= {f"{name}, ReLU": NormReLU(norm) for name, norm in _norms(scale, shape[1]).items()}
    return {name: _forward_and_backward(layer, x, grad, scale) for name, layer in layers.items()}


def _norms(scale: MethodScale, channels: int) -> dict[str, nn.Module]:
    norms = {
        "nn.BatchNorm2d": nn.BatchNorm2d(channels),
        "GhostBatchNorm2d": GhostBatchNorm2d(channels, ghost_batch_size=16),
        "chunk loop + cat": ChunkedBatchNorm2d(channels),
    }
    return {name: norm.to(scale.device) for name, norm in norms.items()}


def standardized_layer(scale: MethodScale) -> dict[str, Arm]:
    dtype = torch.bfloat16 if scale.bf16 else torch.float32
    x = torch.randn(8, 256, 8, 8, device=scale.device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    return {
        name: _forward_and_backward(kind(256, 256, 3, padding=1, bias=False).to(scale.device), x, grad, scale)
        for name, kind in CONVS.items()
    }


def _forward_and_backward(layer: nn.Module, x: Tensor, grad: Tensor, scale: MethodScale) -> Arm:
    if scale.compiled:
        layer.compile()

    def prepare() -> None:
        x.grad = None
        layer.zero_grad()

    def run() -> None:
        with torch.autocast(scale.device.type, torch.bfloat16, enabled=scale.bf16):
            out = layer(x)
        out.backward(grad)

    return Arm(run, prepare)


def memory_format(scale: MethodScale) -> torch.memory_format:
    return torch.channels_last if scale.channels_last else torch.contiguous_format
