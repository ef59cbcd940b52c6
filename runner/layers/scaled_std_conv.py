"""The convolution of normalizer-free networks: scaled weight standardization."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from runner.config.limits import check
from runner.layers.same_padding import SamePadConv2d
from runner.layers.standardized_conv import StandardizedConv, is_channels_last, standardize_by_kernel


class ScaledStdConv2d(StandardizedConv, SamePadConv2d):
    """A 2-d convolution with scaled weight standardization (Brock et al. 2021, arXiv 2101.08692).

    For each output filter, with N = in_channels / groups * kernel height * kernel width (the fan-in) and the biased
    variance over those N elements,

        W_hat = gain * (W - mean) / sqrt(max(var * N, eps)).

    Parameters: `weight`, drawn from N(0, 1 / N); `gain` of shape (out_channels,), 1 at first; `bias`, 0 at first and
    present unless `bias=False`. `eps` is a floor, so a filter's sum of squares is exactly gain^2 above it.

    Arguments are those of `nn.Conv2d`, beside `eps`, but padding="same" takes any stride (see `SamePadConv2d`). Under
    autocast the weight is standardized in fp32 and then rounded. Each forward computes W_hat; within
    `cached_standardized_weights` an evaluation computes it once.

    >>> import torch
    >>> from runner.methods import ScaledStdConv2d
    >>> conv = ScaledStdConv2d(64, 32, 3, padding="same")
    >>> conv(torch.randn(2, 64, 9, 9)).shape
    torch.Size([2, 32, 9, 9])
    >>> weight = conv.standardized_weight()
    >>> torch.allclose(weight.square().sum((1, 2, 3)), torch.ones(32))  # gain ** 2
    True
    """

    def __init__(self, *args, eps: float = 1e-4, **kwargs) -> None:
        check("weight_standardization", eps=eps)
        super().__init__(*args, **kwargs)
        self.eps = eps
        self.gain = nn.Parameter(self.weight.new_ones(self.out_channels))

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1 / fan-in) and set the gain to 1 and the bias to 0."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, "gain"):  # not yet there when nn.Conv2d's constructor calls this
            nn.init.ones_(self.gain)

    def standardized_weight(self) -> Tensor:
        """The weight the convolution uses, of the shape of `weight`."""
        return scaled_standardize(self.weight, self.gain, self.eps)


def scaled_standardize(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """W_hat = gain * (W - mean) / sqrt(max(var * N, eps)) for each output filter (Brock et al. 2021, arXiv 2101.08692).

    `weight` is (out, in / groups, *kernel) in any memory format, which stays; `gain` is (out,), N the size of a filter
    and var biased. Statistics of fp16 and bf16 weights are fp32.
    """
    by_kernel = standardize_by_kernel(weight, gain, eps, _formula)
    if by_kernel is not None:
        return by_kernel
    if is_channels_last(weight):
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


def _formula(weight: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`_ScaledStandardize`, for filters of any shape, in operations that torch can differentiate repeatedly."""
    dim = tuple(range(1, weight.ndim))
    centred = weight - weight.mean(dim, keepdim=True)
    norm = centred.square().sum(dim, keepdim=True).clamp(min=eps).sqrt()
    return centred / norm * gain.view(-1, *(1,) * len(dim))
