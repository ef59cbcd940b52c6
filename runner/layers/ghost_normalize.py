"""Normalization of a mini-batch by ghost batches, with its gradients: the arithmetic of ghost batch norm.

For the ghost batches B_1 .. B_K of x, (N, C, *positions), y = (x - mean(B_i)) / sqrt(var(B_i) + eps) * weight + bias.
A residual may be added to y, and a ReLU applied, in the same pass over memory. The backward pass stores what plain
batch norm and ReLU store: x, weight, a few numbers per channel and, with a ReLU, its output.

There are three implementations. Channels last on a GPU, with Triton: the kernels of `ghost_kernels`. Otherwise torch's
batch norm kernels, called for one ghost batch after the other, which on a CPU stays in cache meanwhile. Under a
compiler: the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.layers.triton_kernels import import_kernels, is_dense, is_plain_cuda

_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_IN_PLACE_VALUES = 2**15  # in a ghost batch; below, calls cost more than memory
_relu_backward = torch.ops.aten.threshold_backward.default
_relu_backward_out = torch.ops.aten.threshold_backward.grad_input


def ghost_normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sizes: list[int],
    eps: float,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized x, and the means and unbiased variances of the ghost batches, each (K, C) and without gradients.

    `sizes` are the numbers of samples, all equal but the last. Statistics of half-precision inputs are float32. With
    `relu` the first is relu(y) or relu(y + residual), where `residual` has the shape and dtype of x.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_meta:
        out, mean, var = _formula(x, weight, bias, sizes, eps)
        out = out if residual is None else out + residual
        return F.relu(out) if relu else out, mean, var
    return _Normalize.apply(x, weight, bias, residual, sizes, eps, relu)


class _Normalize(torch.autograd.Function):
    """`ghost_normalize` with its gradients.

    It has no `setup_context`, which would cost as much as ten small operations in every call.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight, bias, residual, sizes: list[int], eps: float, relu: bool):
        x = _in_one_format(x)
        out = torch.empty_like(x)
        normalize, _ = _arithmetic(x)
        residual = None if residual is None else _laid_out_as(x, residual)
        mean, var, invstd = normalize(x, weight, bias, sizes, eps, out, residual, relu)
        ctx.save_for_backward(x, weight, mean, invstd, *((bias, out) if relu else (None, None)))
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.eps, ctx.bias_dtype = sizes, eps, None if bias is None else bias.dtype
        return out, mean, var

    @staticmethod
    def backward(ctx, grad_out: Tensor | None, *_):
        x, weight, mean, invstd, bias, rectified = ctx.saved_tensors
        if grad_out is None:
            return (None,) * 7
        needs_residual = ctx.needs_input_grad[3]
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            slope = grad_out if rectified is None else grad_out * (rectified > 0)
            grad, grad_weight = _differentiable_gradient(x, weight, ctx.sizes, ctx.eps, slope)
            grad_bias = slope.sum([i for i in range(x.dim()) if i != 1])
            grad_residual = slope if needs_residual else None
        else:
            grad = torch.empty_like(x)
            grad_residual = torch.empty_like(x) if needs_residual else None
            _, gradient = _arithmetic(x)
            grad_weight, grad_bias = gradient(
                x, _laid_out_as(x, grad_out), grad, mean, invstd, weight, bias, ctx.sizes, rectified, grad_residual
            )
        return (
            grad,
            grad_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            grad_bias.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None,
            grad_residual,
            None,
            None,
            None,
        )


def _in_one_format(x: Tensor) -> Tensor:
    """x, contiguous or channels last: other strides give other results in torch's `native_batch_norm.out`."""
    return x if is_dense(x) else x.contiguous()


def _laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    """`other`, copied if it does not lie in memory as x of the same shape does, e.g. where it is an expanded tensor."""
    return other if other.stride() == x.stride() else torch.empty_like(x, dtype=other.dtype).copy_(other)


def _arithmetic(x: Tensor) -> tuple[Callable, Callable]:
    """The forward and the backward function for x."""
    kernels = import_kernels("runner.layers.ghost_kernels") if is_plain_cuda(x) else None
    if kernels is not None and kernels.can_normalize(x):
        return kernels.normalize, kernels.gradient
    return _normalize, _gradient


def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sizes: list[int],
    eps: float,
    out: Tensor,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x into `out`; return means, unbiased variances and 1 / sqrt(var + eps), each (K, C).

    Few calls matter here: on a small feature map each costs as much as the arithmetic.
    """
    count, dtype = len(sizes), _statistics_dtype(x)
    weight, bias = _as(dtype, weight), _as(dtype, bias)
    kept = torch.empty(2 * count, x.shape[1], dtype=dtype, device=x.device)
    running = torch.zeros_like(kept)  # apart from `kept`, since the backward pass needs them not
    rows = (*running.split(count), *kept.split(count))
    mean, invstd, var = rows[2], rows[3], rows[1]
    parts, results = x.split_with_sizes(sizes), out.split_with_sizes(sizes)
    residuals = [None] * count if residual is None else residual.split_with_sizes(sizes)
    for part, result, part_residual, *moments in zip(
        parts, results, residuals, *(row.unbind() for row in rows), strict=True
    ):
        running_mean, running_var, save_mean, save_invstd = moments
        # running statistics with momentum 1 are those of the batch, with the unbiased variance
        torch.native_batch_norm(
            part, weight, bias, running_mean, running_var, True, 1.0, eps, out=(result, save_mean, save_invstd)
        )
        if part_residual is not None:
            result.add_(part_residual)
        if relu:
            result.relu_()
    return mean, var, invstd


def _gradient(
    x: Tensor,
    grad_out: Tensor,
    grad: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    _bias: Tensor | None,
    sizes: list[int],
    rectified: Tensor | None,
    grad_residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Write the gradient at x into `grad`, that at the residual into `grad_residual`; return those at weight and bias.

    `rectified` is the output of the ReLU, if there is one.
    """
    weight, count = _as(mean.dtype, weight), len(sizes)
    large = x.numel() > count * _IN_PLACE_VALUES
    in_place = large and x.is_cpu and x.dtype == mean.dtype and not x.is_contiguous()
    split = (x, grad_out, grad, rectified, grad_residual)
    parts = ([None] * count if tensor is None else tensor.split_with_sizes(sizes) for tensor in split)
    sums: list[Tensor] = []
    for part, slope, result, output, part_residual, part_mean, part_invstd in zip(
        *parts, mean.unbind(), invstd.unbind(), strict=True
    ):
        if output is not None:
            slope = _slope(slope, output, part_residual)
        # batch norm's gradients at weight and bias do not depend on the weight
        grad_part, *terms = _batch_norm_backward(
            slope, part, weight, None, None, part_mean, part_invstd, True, 0.0, [not in_place, True, True]
        )
        if in_place:
            _write_gradient(part, slope, result, part_mean, part_invstd, weight, *terms)
        else:
            result.copy_(grad_part)
        sums += terms
    return torch.stack(sums).view(count, 2, -1).sum(0).unbind()


def _slope(grad_out: Tensor, rectified: Tensor, grad_residual: Tensor | None) -> Tensor:
    """The gradient before the ReLU, which is that at the residual too."""
    if grad_residual is None:
        return _relu_backward(grad_out, rectified, 0)
    return _relu_backward_out(grad_out, rectified, 0, grad_input=grad_residual)


def _write_gradient(
    x: Tensor,
    slope: Tensor,
    grad: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_slope_x_hat: Tensor,
    sum_slope: Tensor,
) -> None:
    """Write weight invstd (slope - mean(slope) - x_hat mean(slope x_hat)) into `grad`, with x_hat = (x - mean) invstd.

    In two passes, where `_batch_norm_backward` would write it into another tensor, to be copied: in float32 and
    channels last on a CPU this takes 0.8 of the time. On half precision `addcmul` with float32 is ten times slower.
    """
    scale = invstd if weight is None else invstd * weight
    share = scale / (x.numel() // len(mean))
    factor = (sum_slope_x_hat * invstd).mul_(share)
    shift = torch.mul(mean, factor).addcmul_(sum_slope, share, value=-1)
    spread = (-1, *[1] * (x.dim() - 2))
    torch.addcmul(shift.view(spread), x, factor.view(spread), value=-1, out=grad)
    grad.addcmul_(slope, scale.view(spread))


def _formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`ghost_normalize` in a few differentiable operations, for a compiler to fuse.

    On a CPU, where the compiler handles plain batch norm's reduction best, up to 16 ghost batches go one by one.
    """
    outs, statistics = [], []
    if x.is_cpu and len(sizes) <= 16:
        parts = [part.unsqueeze(0) for part in x.split_with_sizes(sizes)]
    else:
        parts = _blocks(sizes, x)
    for part in parts:
        var, mean = torch.var_mean(part.to(_statistics_dtype(x)), _within(part), correction=0, keepdim=True)
        y = (part - mean) * (var + eps).rsqrt()
        y = y if weight is None else y * _per_channel(weight, part)
        y = y if bias is None else y + _per_channel(bias, part)
        outs.append(y.to(x.dtype).flatten(0, 1))
        values = part.numel() // mean.numel()
        statistics.append((mean.detach().flatten(1), var.detach().flatten(1) * (values / (values - 1))))
    return torch.cat(outs), *_joined(statistics)


def _differentiable_gradient(
    x: Tensor, weight: Tensor | None, sizes: list[int], eps: float, grad_out: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients at x and weight as functions that can be differentiated again, by torch's own batch norm."""
    parts = x.split_with_sizes(sizes)
    out = torch.cat([F.batch_norm(part, None, None, weight, None, True, 0.0, eps) for part in parts])
    inputs = [tensor for tensor in (x, weight) if tensor is not None and tensor.requires_grad]
    if not inputs:
        return None, None
    grads = dict(zip(map(id, inputs), torch.autograd.grad(out, inputs, grad_out, create_graph=True), strict=True))
    return grads.get(id(x)), grads.get(id(weight))


def _blocks(sizes: list[int], x: Tensor) -> list[Tensor]:
    """Views (K, n, C, *positions) of x for the ghost batches of the common size, then for one of another size."""
    if sizes[-1] == sizes[0]:
        return [x.unflatten(0, (len(sizes), sizes[0]))]
    end = sum(sizes[:-1])
    return [x[:end].unflatten(0, (len(sizes) - 1, sizes[0])), x[end:].unsqueeze(0)]


def _joined(statistics: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The (K, C) statistics of all blocks."""
    return tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*statistics, strict=True))


def _within(x: Tensor) -> tuple[int, ...]:
    """The dimensions of x (K, n, C, *positions) that statistics reduce."""
    return (1, *range(3, x.dim()))


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A (C,) parameter in the shape that broadcasts against x (K, n, C, *positions)."""
    return parameter.view(-1, *[1] * (x.dim() - 3))


def _as(dtype: torch.dtype, parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None or parameter.dtype == dtype else parameter.to(dtype)
