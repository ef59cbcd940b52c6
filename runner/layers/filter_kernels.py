"""Standardized filters of a convolution in one Triton kernel forward and one backward, on a GPU.

A program has one filter, `weight[i]`, which lies in one piece in memory. With its N values, their mean and the sum S of
their squared deviations from it,

    W_hat = r * (W - mean),           r = 1 / sqrt(S / N + eps)         without a gain (arXiv 1903.10520)
    W_hat = gain * r * (W - mean),    r = 1 / sqrt(max(S, eps))         with one (arXiv 2101.08692)

and with the gradient g of W_hat and c = sum_j g_j (W_j - mean)

    d W    = gain * r * (g - mean(g)) - gain * r^3 * c * s * (W - mean)
    d gain = r * c

where s is 1 / N without a gain; with one it is 1, or 0 where eps is the larger. Arithmetic is in float32; W_hat is
written in the dtype of the convolution, so that autocast has nothing to cast.

Each layer has its own launches. One launch for all layers would write every gradient at the end of the backward pass,
which DistributedDataParallel could not overlap with it, and activation checkpointing would compute a layer's weight in
other operations than it did before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from runner.layers.triton_kernels import LAUNCH_OPTIONS

BLOCK, LARGE_BLOCK = 1024, 4096


class Standardize(torch.autograd.Function):
    """`Standardize.apply(weight, gain, eps, dtype, formula)` is W_hat in `dtype`, laid out in memory as `weight` is.

    `formula(weight, gain, eps)` is W_hat in operations that torch can differentiate repeatedly.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, weight: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype, formula: Callable
    ) -> Tensor:
        standardized = torch.empty_like(weight, dtype=dtype)
        moments = weight.new_empty((2, weight.shape[0]), dtype=torch.float32)
        _launch(_standardize_filter, weight, standardized, gain, moments, eps)
        ctx.save_for_backward(weight, gain, moments)
        ctx.eps, ctx.formula = eps, formula
        return standardized

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weight, gain, moments = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            inputs = [tensor for tensor, is_needed in zip((weight, gain), needed, strict=True) if is_needed]
            standardized = ctx.formula(weight.float(), None if gain is None else gain.float(), ctx.eps)
            grads = iter(torch.autograd.grad(standardized, inputs, grad.float(), create_graph=True))
            return *(next(grads) if is_needed else None for is_needed in needed), None, None, None
        if not _same_layout(grad, weight):
            grad = torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
        grad_weight = torch.empty_like(weight)
        grad_gain = None if gain is None else torch.empty_like(gain)
        _launch(_gradient_of_filter, weight, grad, grad_weight, gain, grad_gain, moments, ctx.eps)
        return grad_weight, grad_gain, None, None, None


def _launch(kernel: triton.JITFunction, weight: Tensor, *arguments: object) -> None:
    filters, size = weight.shape[0], weight.shape[1:].numel()
    block = BLOCK if size <= BLOCK else LARGE_BLOCK
    with torch.cuda.device_of(weight):
        kernel[(filters,)](weight, *arguments, filters, size, block, **LAUNCH_OPTIONS)


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether elements of the same index lie at the same place of both, which have one shape."""
    places = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size == 1 or stride == other_stride for size, stride, other_stride in places)


@triton.jit
def _standardize_filter(weight, standardized, gain, moments, eps, filters, size, BLOCK: tl.constexpr):
    """One filter of W_hat, its mean and its sum of squared deviations."""
    filter = tl.program_id(0)
    offset = filter.to(tl.int64) * size
    weight += offset
    standardized += offset
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        sums += tl.load(weight + start + lane, mask=start + lane < size, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / size
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        values = tl.load(weight + start + lane, mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, values - mean, 0.0)
        squares += deviation * deviation
    square = tl.sum(squares, 0)
    tl.store(moments + filter, mean)
    tl.store(moments + filters + filter, square)
    scale, _ = _inverse_and_slope(square, gain, eps, size)
    if gain is not None:
        scale *= tl.load(gain + filter).to(tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        values = tl.load(weight + start + lane, mask=inside, other=0.0).to(tl.float32)
        tl.store(standardized + start + lane, ((values - mean) * scale).to(standardized.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_of_filter(
    weight, grad, grad_weight, gain, grad_gain, moments, eps, filters, size, BLOCK: tl.constexpr
):  # fmt: skip
    """The gradient at one filter and its gain."""
    filter = tl.program_id(0)
    offset = filter.to(tl.int64) * size
    weight += offset
    grad += offset
    grad_weight += offset
    mean = tl.load(moments + filter)
    inverse, slope = _inverse_and_slope(tl.load(moments + filters + filter), gain, eps, size)
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        slopes = tl.load(grad + start + lane, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(weight + start + lane, mask=inside, other=0.0).to(tl.float32)
        sums += slopes
        products += slopes * (values - mean)
    mean_grad = tl.sum(sums, 0) / size
    covariance = tl.sum(products, 0)
    scale = inverse
    if gain is not None:
        tl.store(grad_gain + filter, (inverse * covariance).to(grad_gain.dtype.element_ty))
        scale *= tl.load(gain + filter).to(tl.float32)
    factor = inverse * inverse * covariance * slope
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        slopes = tl.load(grad + start + lane, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(weight + start + lane, mask=inside, other=0.0).to(tl.float32)
        result = scale * (slopes - mean_grad - (values - mean) * factor)
        tl.store(grad_weight + start + lane, result.to(grad_weight.dtype.element_ty), mask=inside)


@triton.jit
def _inverse_and_slope(square, gain, eps, size):
    """r, and s of its derivative (see above), of a filter's sum of squared deviations."""
    if gain is None:
        inverse = 1.0 / tl.sqrt(square / size + eps)
        slope = 1.0 / size
    else:
        inverse = 1.0 / tl.sqrt(tl.where(square > eps, square, eps))
        slope = tl.where(square > eps, 1.0, 0.0)
    return inverse, slope
