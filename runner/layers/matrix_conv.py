"""Convolutions over few positions as products of matrices, on a CPU in channels-last memory.

oneDNN, torch's library of convolutions, copies each weight into a layout of its own, forward and backward, and its
gradient out of one. Where a layer has many channels and few positions, as the last stages of a residual network have on
small images, that takes up to ten times as long as the arithmetic. A weight (out, in, height, width) that is channels
last in memory is a matrix, out x (height * width * in), as it lies, and so is its gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from runner.layers.tracing import leaf_call
from runner.layers.triton_kernels import is_eager

DTYPES = (torch.float32, torch.bfloat16)
MOST_OUTPUTS = 3  # positions of a batch, by output channel; above, oneDNN's copies of the weight cost less
MOST_POSITIONS = 64  # of an input


class MatrixConv2d(nn.Conv2d):
    """`nn.Conv2d` by `conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return leaf_call(self, input) if isinstance(input, Proxy) else super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(input, weight, bias)
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def use_matrix_products(model: nn.Module) -> None:
    """Make each `nn.Conv2d` of the model, but no subclass, a `MatrixConv2d` with the same parameters."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = MatrixConv2d


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """`F.conv2d`, equal up to rounding, by a product of matrices where that is faster."""
    windows = _windows(x, weight, stride, padding, dilation) if groups == 1 else None
    if windows is None:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)
    if windows.taps is not None:
        taps = taps.index_select(1, windows.taps)
    tensors = (x.permute(0, 2, 3, 1).flatten(1, 2), taps.flatten(1), bias)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        tensors = (tensor if tensor is None else tensor.to(dtype) for tensor in tensors)
    return _Product.apply(*tensors, windows)


class Windows(NamedTuple):
    """What a kernel meets on a feature map. Taps that meet nothing but padding are left out.

    `shape` is the output's height and width. `places` (outputs * taps,) are the input positions, from 1, or 0 for
    padding; None if they are the input's positions in order. `scatter` (positions, outputs * taps) is 1 where an output
    meets a position, else 0. `taps` are those that are left; None if all are.
    """

    shape: tuple[int, int]
    places: Tensor | None
    scatter: Tensor
    taps: Tensor | None


def _windows(x: Tensor, weight: Tensor, *movement: tuple[int, int]) -> Windows | None:
    """The windows of a convolution that is to be a product; None for others."""
    is_plain = x.is_cpu and x.dim() == 4 and x.dtype in DTYPES and weight.dtype in DTYPES and is_eager()
    if not is_plain or x.shape[2:].numel() > MOST_POSITIONS:
        return None
    if not all(each.is_contiguous(memory_format=torch.channels_last) for each in (x, weight)):
        return None
    windows = windows_of(tuple(x.shape[2:]), tuple(weight.shape[2:]), *movement)
    outputs = len(x) * windows.shape[0] * windows.shape[1]
    return windows if 0 < outputs <= MOST_OUTPUTS * len(weight) else None


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # an evaluation may be the first to call, and training the next
def windows_of(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Windows:
    """The windows of a kernel on a feature map of this height and width."""
    positions = torch.arange(1, 1 + size[0] * size[1])
    met = F.unfold(positions.float().view(1, 1, *size), kernel_size, dilation, padding, stride)[0].long()
    is_met = met.any(1)  # of each tap
    places = met[is_met].t().flatten()
    ends = (size[axis] + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) for axis in (0, 1))
    shape = tuple((end - 1) // step + 1 for end, step in zip(ends, stride, strict=True))
    return Windows(
        shape,
        None if torch.equal(places, positions) else places,
        F.one_hot(places, len(positions) + 1)[:, 1:].t().float().contiguous(),
        None if is_met.all() else is_met.nonzero().squeeze(1),
    )


class _Product(torch.autograd.Function):
    """The output (N, out, height, width) of x (N, positions, in) and the weight (out, taps * in).

    The gradients are computed by operations that can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.windows = windows
        columns = _columns(x, weight, windows)
        # no view: what a Function gives as a view may not be changed in place, as nn.ReLU(inplace=True) would
        shape = (len(x), len(weight), *windows.shape)
        out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        rows = out.permute(0, 2, 3, 1).view(-1, len(weight))
        if bias is None:
            torch.mm(columns, weight.t(), out=rows)
        else:
            torch.addmm(bias, columns, weight.t(), out=rows)
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        (x, weight), windows = ctx.saved_tensors, ctx.windows
        slopes = grad_out.permute(0, 2, 3, 1).flatten(0, 2)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (slopes @ weight).view(len(x), -1, x.shape[2])
            if windows.places is not None:  # a product adds half precision up in float32
                grad_x = windows.scatter.to(x.dtype) @ grad_x
        if ctx.needs_input_grad[1]:  # the columns take several times the memory of x: they are not kept
            grad_weight = slopes.t() @ _columns(x, weight, windows)
        if ctx.needs_input_grad[2]:
            grad_bias = slopes.sum(0)
        return grad_x, grad_weight, grad_bias, None


def _columns(x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """What the kernel meets at each output position of each sample: (N * outputs, taps * in)."""
    if windows.places is not None:
        x = torch.cat([x.new_zeros(len(x), 1, x.shape[2]), x], 1).index_select(1, windows.places)
    return x.reshape(-1, weight.shape[1])
