"""Normalization of a mini-batch by ghost batches, with its gradients: the arithmetic of ghost batch norm.

For the ghost batches B_1 .. B_K of x, (N, C, *positions), y = (x - mean(B_i)) / sqrt(var(B_i) + eps) * weight + bias.
The backward pass stores what plain batch norm stores: x, weight and a few numbers per channel.

There are four implementations. Channels last on a GPU, with Triton: the kernels of `ghost_kernels`. Otherwise on a GPU,
and channels last on a CPU: torch's batch norm kernels reduce each ghost batch, and one call writes the large tensors.
Contiguous on a CPU, where these kernels are slow: a few calls for all ghost batches, on a view (K, n, C, *positions).
Under a compiler: the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.layers.triton_kernels import import_kernels

_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


def ghost_normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized x, and the means and unbiased variances of the ghost batches, each (K, C) and without gradients.

    `sizes` are the numbers of samples, all equal but the last. Statistics of half-precision inputs are float32.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_meta:
        return _formula(x, weight, bias, sizes, eps)
    return _Normalize.apply(x, weight, bias, sizes, eps)


class _Normalize(torch.autograd.Function):
    """`ghost_normalize` with its gradients.

    It has no `setup_context`, which would cost as much as ten small operations in every call.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float):
        out = torch.empty_like(x)
        normalize, _ = _arithmetic(x)
        mean, var, invstd = normalize(x, weight, bias, sizes, eps, out)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.eps, ctx.bias_dtype = sizes, eps, None if bias is None else bias.dtype
        return out, mean, var

    @staticmethod
    def backward(ctx, grad_out: Tensor | None, *_):
        x, weight, mean, invstd = ctx.saved_tensors
        if grad_out is None:
            return None, None, None, None, None
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            grad, grad_weight = _differentiable_gradient(x, weight, ctx.sizes, ctx.eps, grad_out)
            grad_bias = grad_out.sum([i for i in range(x.dim()) if i != 1])
        else:
            grad = torch.empty_like(x)
            _, gradient = _arithmetic(x)
            grad_weight, grad_bias = gradient(x, grad_out, grad, mean, invstd, weight, ctx.sizes)
        return (
            grad,
            grad_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            grad_bias.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _arithmetic(x: Tensor) -> tuple[Callable, Callable]:
    """The forward and the backward function for x."""
    # a subclass, such as a fake tensor, may have no memory for a kernel
    kernels = import_kernels("runner.layers.ghost_kernels") if x.is_cuda and type(x) is Tensor else None
    if kernels is not None and kernels.can_normalize(x):
        return kernels.normalize, kernels.gradient
    if x.is_cuda or not x.is_contiguous():
        return _normalize, _gradient
    return _normalize_on_views, _gradient_on_views


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x into `out`; return means, unbiased variances and 1 / sqrt(var + eps), each (K, C).

    Few calls matter here: on a small feature map each costs as much as the arithmetic.
    """
    count, channels = len(sizes), x.shape[1]
    statistics = torch.zeros(2 * count, channels, dtype=_statistics_dtype(x), device=x.device)
    rows = statistics.unbind()
    for part, mean, var in zip(x.split_with_sizes(sizes), rows[:count], rows[count:], strict=True):
        # running statistics with momentum 1 are those of the batch, written into one tensor of the right dtype
        torch.batch_norm_update_stats(part, mean, var, 1.0)
    mean, var = statistics.view(2, count, channels).unbind()
    values = _values(x, sizes)
    invstd = var.mul((values - 1) / values).add_(eps).rsqrt_()  # of the biased variance
    scale = invstd if weight is None else invstd * weight
    shift = mean * -scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    for part, result, part_shift, part_scale in _blocks(sizes, (x, out), (shift, scale)):
        torch.addcmul(part_shift, part, part_scale, out=result)
    return mean, var, invstd


def _gradient(
    x: Tensor, grad_out: Tensor, grad: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Write the gradient at x into `grad`; return those at weight and bias.

    With x_hat = (x - mean) invstd: grad = weight invstd (grad_out - mean(grad_out) - x_hat mean(grad_out x_hat)).
    """
    sums: tuple[list[Tensor], list[Tensor]] = ([], [])
    parts, grad_parts = x.split_with_sizes(sizes), grad_out.split_with_sizes(sizes)
    for part, grad_part, m, s in zip(parts, grad_parts, mean.unbind(), invstd.unbind(), strict=True):
        # batch norm's gradients at weight and bias do not depend on the weight: pass m instead
        _, *terms = _batch_norm_backward(grad_part, part, m, None, None, m, s, True, 0.0, [False, True, True])
        for of_one_kind, term in zip(sums, terms, strict=True):
            of_one_kind.append(term)
    both = torch.stack(sums[0] + sums[1]).view(2, *mean.shape)
    sum_grad_x_hat, sum_grad = both.unbind()
    scale = invstd if weight is None else invstd * weight
    share = scale / _values(x, sizes)
    slope = (sum_grad_x_hat * invstd).mul_(share)
    shift = torch.mul(mean, slope).addcmul_(sum_grad, share, value=-1)
    for part, grad_part, result, part_shift, part_slope, part_scale in _blocks(
        sizes, (x, grad_out, grad), (shift, slope, scale)
    ):
        # the smaller term first: its rounding, where `result` is of half precision, is below that of the sum
        torch.addcmul(part_shift, part, part_slope, value=-1, out=result).addcmul_(grad_part, part_scale)
    return both.sum(1).unbind()


def _normalize_on_views(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_normalize` without batch norm's kernels."""
    statistics = []
    for part, result in _blocks(sizes, (x, out)):
        within = _within(part)
        y = _workspace(result)
        mean = part.mean(within, keepdim=True, dtype=y.dtype)
        torch.sub(part, mean, out=y)
        squares = y.mul_(y).sum(within, keepdim=True)
        values = part.numel() // mean.numel()
        invstd = (squares / values + eps).rsqrt()
        scale = invstd if weight is None else invstd * _per_channel(weight, part)
        shift = mean * -scale if bias is None else torch.addcmul(_per_channel(bias, part), mean, scale, value=-1)
        torch.mul(part, scale, out=y).add_(shift)
        if y is not result:
            result.copy_(y)
        statistics.append((mean.flatten(1), squares.flatten(1) / (values - 1), invstd.flatten(1)))
    return _joined(statistics)


def _gradient_on_views(
    x: Tensor, grad_out: Tensor, grad: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """`_gradient` without batch norm's kernels."""
    sums = []
    for part, grad_part, result, part_mean, part_invstd in _blocks(sizes, (x, grad_out, grad), (mean, invstd)):
        within = _within(part)
        values = part.numel() // part_mean.numel()
        scale = part_invstd if weight is None else part_invstd * _per_channel(weight, part)
        y = _workspace(result)
        sum_grad = grad_part.sum(within, keepdim=True, dtype=y.dtype)
        sum_grad_x_hat = torch.sub(part, part_mean, out=y).mul_(grad_part).sum(within, keepdim=True) * part_invstd
        share = scale / -values
        slope = (sum_grad_x_hat * part_invstd).mul_(share)
        shift = torch.mul(sum_grad, share).addcmul_(part_mean, slope, value=-1)
        torch.mul(part, slope, out=y).add_(shift).addcmul_(grad_part, scale)
        if y is not result:
            result.copy_(y)
        sums.append((sum_grad_x_hat.flatten(1), sum_grad.flatten(1)))
    return tuple(terms.sum(0) for terms in _joined(sums))


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
        parts = [part for (part,) in _blocks(sizes, (x,))]
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


def _blocks(sizes: list[int], samples: Sequence[Tensor], statistics: Sequence[Tensor] = ()) -> Iterator[list[Tensor]]:
    """Views for the ghost batches of the common size, then for one of another size, that broadcast together.

    They are (K, n, C, *positions) of samples (N, C, *positions), and (K, 1, C, 1, ..) of statistics (K, C).
    """
    spread = (1, -1, *[1] * (samples[0].dim() - 2))
    if sizes[-1] == sizes[0]:
        count = len(sizes)
        yield [*(x.unflatten(0, (count, sizes[0])) for x in samples), *(s.view(count, *spread) for s in statistics)]
        return
    count, end = len(sizes) - 1, sum(sizes[:-1])
    yield [
        *(x[:end].unflatten(0, (count, sizes[0])) for x in samples),
        *(s[:-1].view(count, *spread) for s in statistics),
    ]
    yield [*(x[end:].unsqueeze(0) for x in samples), *(s[-1:].view(1, *spread) for s in statistics)]


def _joined(statistics: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The (K, C) statistics of all blocks."""
    return tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*statistics, strict=True))


def _within(x: Tensor) -> tuple[int, ...]:
    """The dimensions of x (K, n, C, *positions) that statistics reduce."""
    return (1, *range(3, x.dim()))


def _values(x: Tensor, sizes: list[int]) -> int | Tensor:
    """The number of values of a channel in each ghost batch: a number, or a column (K, 1) where they differ."""
    positions = x.shape[2:].numel()
    if sizes[-1] == sizes[0]:
        return sizes[0] * positions
    values = torch.full((len(sizes), 1), sizes[0] * positions, dtype=_statistics_dtype(x), device=x.device)
    values[-1] = sizes[-1] * positions
    return values


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _workspace(result: Tensor) -> Tensor:
    """`result` itself, or a float32 tensor like it if `result` has half precision.

    The computation stays in this one buffer: on a CPU, fresh memory costs more than another pass.
    """
    dtype = _statistics_dtype(result)
    return result if dtype == result.dtype else torch.empty_like(result, dtype=dtype)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A (C,) parameter in the shape that broadcasts against x (K, n, C, *positions)."""
    return parameter.view(-1, *[1] * (x.dim() - 3))
