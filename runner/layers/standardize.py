"""Standardized weights: every output filter of a convolution with mean zero and a fixed scale.

Each filter `weight[i]` of N = `weight[0].numel()` elements is standardized by itself, with the biased variance.
Both functions take weights of shape (out, in / groups, *kernel) in any memory format and keep it. Statistics of fp16
and bf16 weights are fp32. For the backward they store the weight itself and a few numbers per filter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """W_hat = (W - mean) / sqrt(var + eps) for each output filter (Qiao et al. 2019, arXiv 1903.10520)."""
    if _is_channels_last(weight):
        return standardize(weight.movedim(1, -1), eps).movedim(-1, 1)
    return F.layer_norm(weight, weight.shape[1:], eps=eps)


def scaled_standardize(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """W_hat = gain * (W - mean) / sqrt(max(var * N, eps)) for each output filter (Brock et al. 2021, arXiv 2101.08692).

    `gain` has shape (out,).
    """
    if _is_channels_last(weight):
        return scaled_standardize(weight.movedim(1, -1), gain, eps).movedim(-1, 1)
    filters = weight.flatten(1)
    if weight.dtype in (torch.float16, torch.bfloat16):
        return _ScaledStandardize.apply(filters.float(), gain.float(), eps).to(weight.dtype).view_as(weight)
    return _ScaledStandardize.apply(filters, gain, eps).view_as(weight)


class _ScaledStandardize(torch.autograd.Function):
    """`scaled_standardize` for filters of shape (out, N), in few passes over the weight and without a stored copy.

    With r = 1 / sqrt(max(sum_j (W_j - mean)^2, eps)) and the gradient g of W_hat, a filter's derivatives are

        d gain = r * sum_j g_j (W_j - mean)
        d W    = gain * r * (g - mean(g)) - gain * r^3 * (W - mean) * sum_j g_j (W_j - mean),

    the last term only where eps does not act.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, filters: Tensor, gain: Tensor, eps: float) -> Tensor:
        mean = filters.mean(1, keepdim=True)
        standardized = filters - mean
        sum_of_squares = torch.linalg.vector_norm(standardized, dim=1, keepdim=True).square()
        inverse_norm = sum_of_squares.clamp(min=eps).rsqrt()
        ctx.save_for_backward(filters, gain, mean, inverse_norm, sum_of_squares > eps)
        ctx.eps = eps
        return standardized.mul_(inverse_norm * gain.unsqueeze(1))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        filters, gain, mean, inverse_norm, above_floor = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            inputs = [tensor for tensor, needed in zip((filters, gain), ctx.needs_input_grad) if needed]  # noqa: B905
            grads = iter(torch.autograd.grad(_formula(filters, gain, ctx.eps), inputs, grad, create_graph=True))
            return *(next(grads) if needed else None for needed in ctx.needs_input_grad[:2]), None
        grad_sum = grad.sum(1, keepdim=True)
        product = grad * filters
        covariance = product.sum(1, keepdim=True) - mean * grad_sum
        grad_scale = gain.unsqueeze(1) * inverse_norm
        filter_scale = -grad_scale * inverse_norm.square() * covariance * above_floor
        shift = -grad_scale * grad_sum / filters.shape[1] - filter_scale * mean
        # Reuse the product's memory: on a CPU, fresh memory costs more than the arithmetic.
        grad_filters = torch.mul(filters, filter_scale, out=product).add_(shift).addcmul_(grad, grad_scale)
        return grad_filters, (inverse_norm * covariance).squeeze(1), None


def _formula(filters: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`_ScaledStandardize` in operations that torch can differentiate repeatedly."""
    centred = filters - filters.mean(1, keepdim=True)
    return centred * centred.square().sum(1, keepdim=True).clamp(min=eps).rsqrt() * gain.unsqueeze(1)


def _is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()
