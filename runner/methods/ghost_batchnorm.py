"""Ghost batch normalization (Hoffer et al. 2017, arXiv 1705.08741): batch statistics over a few samples at a time.

In training each ghost batch B_i (consecutive samples; `ghost_batch_sizes` says how many) has its own statistics,

    y = (x - mean(B_i)) / sqrt(var(B_i) + eps) * weight + bias,

over its samples and positions, with the biased variance. Evaluation, the parameters, the buffers and the keys of the
state dict are those of plain batch norm; so is everything else with a single ghost batch.

The means mu_i and the unbiased variances of the K ghost batches enter the running statistics one after the other,

    mu <- (1 - s)^K mu + sum_i s (1 - s)^(K - i) mu_i,    i = 1..K,

with a step s that `running_stats` chooses: "scaled" takes s = momentum / K, so that a mini-batch weighs about as much
as in plain batch norm; "sequential" takes s = momentum (Hoffer et al.): at momentum 0.1, 8 ghost batches weigh 0.57.

With momentum=None the running statistics are, as in plain batch norm, the plain mean over all mini-batches so far,
each with the mean over its ghost batches, and the initial values are gone after the first; both rules agree there.
`num_batches_tracked` counts mini-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from runner.limits import check
from runner.methods.method import Method
from runner.surgery import nothing_to_change, refuse_modules, replace_modules


def ghost_batch_sizes(batch_size: int, ghost_batch_size: int) -> list[int]:
    """The sizes of the ghost batches that a mini-batch of `batch_size` samples is cut into, in order.

    Each has exactly `ghost_batch_size` samples, but for the remainder: smaller than half a ghost batch, it joins the
    last one; otherwise it is a ghost batch of its own. A mini-batch smaller than a ghost batch is one ghost batch.

    >>> ghost_batch_sizes(100, 32), ghost_batch_sizes(112, 32), ghost_batch_sizes(7, 32)
    ([32, 32, 36], [32, 32, 32, 16], [7])
    """
    if batch_size < ghost_batch_size:
        return [batch_size]
    count, remainder = divmod(batch_size, ghost_batch_size)
    sizes = [ghost_batch_size] * count
    if 2 * remainder >= ghost_batch_size and remainder:
        sizes.append(remainder)
    else:
        sizes[-1] += remainder
    return sizes


class _GhostBatchNorm(_BatchNorm):
    """What the layers below have in common; the module's docstring gives the equations."""

    def __init__(
        self, num_features: int, *args, ghost_batch_size: int = 32, running_stats: str = "scaled", **kwargs
    ) -> None:
        check("ghost_batchnorm", ghost_batch_size=ghost_batch_size, running_stats=running_stats)
        super().__init__(num_features, *args, **kwargs)
        self.ghost_batch_size = ghost_batch_size
        self.running_stats = running_stats

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        sizes = ghost_batch_sizes(len(x), self.ghost_batch_size)
        if not self.training or len(sizes) == 1:
            return super().forward(x)
        if min(sizes) * x.shape[2:].numel() == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x[:1].shape} in a ghost batch "
                f"(ghost_batch_size={self.ghost_batch_size}, mini-batch of {len(x)} samples): use larger ghost batches"
            )
        out, mean, var, _ = _Normalize.apply(x, self.weight, self.bias, sizes, self.eps)
        if self.track_running_stats:
            self._update_running_stats(mean, var)
        return out

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, var: Tensor) -> None:
        """Bring the means and the unbiased variances of the K ghost batches, each (K, C), into the running ones."""
        self.num_batches_tracked.add_(1)
        count = len(mean)
        if self.momentum is None:
            share = self.num_batches_tracked.to(mean.dtype).reciprocal()
            kept, weights = 1 - share, (share / count).expand(count)
        else:
            step = self.momentum / count if self.running_stats == "scaled" else self.momentum
            powers = (1 - step) ** torch.arange(count, -1, -1, dtype=mean.dtype, device=mean.device)
            kept, weights = powers[0], step * powers[1:]
        for running, statistics in (self.running_mean, mean), (self.running_var, var):
            running.copy_(kept * running + (weights[:, None] * statistics).sum(0))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}, running_stats={self.running_stats}"


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d, for (N, C) or (N, C, L), over ghost batches of `ghost_batch_size` samples."""


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d, for (N, C, H, W), over ghost batches of `ghost_batch_size` samples."""


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d, for (N, C, D, H, W), over ghost batches of `ghost_batch_size` samples."""


GHOST_BATCH_NORMS = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


def apply_ghost_batchnorm(model: nn.Module, *, ghost_batch_size: int = 32, running_stats: str = "scaled") -> int:
    """Turn the batch norms of `model` into ghost batch norms, in place; the number of layers changed is returned.

    Parameter and buffer objects, hooks and state-dict keys stay: an optimizer made before goes on training the
    model, and checkpoints load both ways. Layers that are ghost batch norms already take the new settings, and count
    if these differ from theirs.

    Raises ValueError if there is no batch norm, if the model itself is one, and for layers that cannot be turned:
    SyncBatchNorm (statistics over devices are the opposite of a ghost batch), lazy ones (of no size yet) and other
    subclasses of batch norm, which may compute more than batch norm.
    """
    settings = {"ghost_batch_size": ghost_batch_size, "running_stats": running_stats}
    check("ghost_batchnorm", **settings)
    refuse_modules(
        model,
        lambda module: isinstance(module, nn.SyncBatchNorm),
        "it shares its statistics over devices, the opposite of a ghost batch; choose one of the two",
    )
    known = (*GHOST_BATCH_NORMS, *GHOST_BATCH_NORMS.values())
    refuse_modules(
        model,
        lambda module: isinstance(module, _BatchNorm) and type(module) not in known,
        "only nn.BatchNorm1d, 2d and 3d themselves become ghost batch norms: a lazy layer needs a first forward pass, "
        "another subclass may compute more than batch norm",
    )
    converted = [module for module in model.modules() if isinstance(module, _GhostBatchNorm)]
    changed = 0
    for layer in converted:
        if (layer.ghost_batch_size, layer.running_stats) != (ghost_batch_size, running_stats):
            layer.ghost_batch_size, layer.running_stats = ghost_batch_size, running_stats
            changed += 1

    def make(plain: _BatchNorm) -> _GhostBatchNorm:
        return GHOST_BATCH_NORMS[type(plain)](
            plain.num_features,
            plain.eps,
            plain.momentum,
            plain.affine,
            plain.track_running_stats,
            device="meta",  # nothing is allocated: parameters and buffers are carried over
            **settings,
        )

    changed += replace_modules(model, tuple(GHOST_BATCH_NORMS), make)
    if not changed and not converted:
        raise nothing_to_change(model, "batch norm (nn.BatchNorm1d, 2d, 3d)")
    return changed


class GhostBatchNorm(Method):
    """Ghost batch norm in place of batch norm; see `apply_ghost_batchnorm`."""

    order = 20
    counted = "batch norms"

    def __init__(self, *, ghost_batch_size: int = 32, running_stats: str = "scaled") -> None:
        check("ghost_batchnorm", ghost_batch_size=ghost_batch_size, running_stats=running_stats)
        self.ghost_batch_size = ghost_batch_size
        self.running_stats = running_stats

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_ghost_batchnorm(model, ghost_batch_size=self.ghost_batch_size, running_stats=self.running_stats)


class _Normalize(torch.autograd.Function):
    """Normalization by ghost batch, for x of (N, C, *positions), with its gradients.

    All ghost batches of one size are computed together, on a view (K, n, C, *positions): few kernels, no copy of x in
    any memory format. Kept for the backward pass are x, weight and the statistics, as batch norm does. Statistics of
    half-precision inputs are in float32.

    Returns the output and the (K, C) means, unbiased variances and inverse standard deviations.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float):
        out = torch.empty_like(x)
        statistics = [
            _normalize(part, weight, bias, eps, out_part)
            for part, out_part in zip(_ghost_batches(x, sizes), _ghost_batches(out, sizes), strict=True)
        ]
        return out, *(torch.cat(parts) for parts in zip(*statistics, strict=True))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, bias, ctx.sizes, ctx.eps = inputs
        _, mean, var, invstd = output
        ctx.mark_non_differentiable(mean, var, invstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.bias_dtype = None if bias is None else bias.dtype

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
            sums = []
            counts = [len(part) for part in _ghost_batches(x, ctx.sizes)]
            parts = (_ghost_batches(tensor, ctx.sizes) for tensor in (x, grad_out, grad))
            for part, grad_out_part, grad_part, m, s in zip(
                *parts, mean.split(counts), invstd.split(counts), strict=True
            ):
                sums.append(_gradient(part, grad_out_part, m, s, weight, grad_part))
            grad_weight, grad_bias = (sum(terms) for terms in zip(*sums, strict=True))
        return (
            grad,
            grad_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            grad_bias.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _ghost_batches(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Views (K, n, C, *positions) of x: the ghost batches of the common size, then a last one of another size."""
    if sizes[-1] == sizes[0]:
        return [x.unflatten(0, (len(sizes), sizes[0]))]
    equal = len(sizes) - 1
    return [x[: -sizes[-1]].unflatten(0, (equal, sizes[0])), x[-sizes[-1] :].unsqueeze(0)]


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x (K, n, C, *positions) into `out`; return mean, unbiased variance and 1 / sqrt(var + eps), (K, C)."""
    within, values = _within(x)
    y = _workspace(out)
    mean = x.mean(within, keepdim=True, dtype=y.dtype)
    torch.sub(x, mean, out=y)
    squares = y.mul_(y).sum(within, keepdim=True)
    invstd = (squares / values + eps).rsqrt()
    scale = invstd if weight is None else invstd * _per_channel(weight, x)
    shift = -mean * scale if bias is None else _per_channel(bias, x) - mean * scale
    torch.mul(x, scale, out=y).add_(shift)
    if y is not out:
        out.copy_(y)
    return mean.flatten(1), squares.flatten(1) / (values - 1), invstd.flatten(1)


def _gradient(
    x: Tensor, grad_out: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient at x (K, n, C, *positions) into `grad`; return those at weight and bias.

    With x_hat = (x - mean) invstd: grad = weight invstd (grad_out - mean(grad_out) - x_hat mean(grad_out x_hat)).
    """
    within, values = _within(x)
    mean, invstd = (statistic.view(len(x), 1, -1, *[1] * (x.dim() - 3)) for statistic in (mean, invstd))
    scale = invstd if weight is None else invstd * _per_channel(weight, x)
    y = _workspace(grad)
    sum_grad = grad_out.sum(within, keepdim=True, dtype=y.dtype)
    sum_grad_x_hat = torch.sub(x, mean, out=y).mul_(grad_out).sum(within, keepdim=True) * invstd
    slope = sum_grad_x_hat * invstd * scale / -values
    torch.mul(x, slope, out=y).add_(sum_grad * scale / -values - mean * slope).addcmul_(grad_out, scale)
    if y is not grad:
        grad.copy_(y)
    return sum_grad_x_hat.flatten(1).sum(0), sum_grad.flatten(1).sum(0)


def _differentiable_gradient(
    x: Tensor, weight: Tensor | None, sizes: list[int], eps: float, grad_out: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients at x and weight as functions that can be differentiated again, by torch's own batch norm."""
    out = torch.cat([F.batch_norm(part, None, None, weight, None, True, 0.0, eps) for part in x.split(sizes)])
    inputs = [tensor for tensor in (x, weight) if tensor is not None and tensor.requires_grad]
    grads = dict(zip(map(id, inputs), torch.autograd.grad(out, inputs, grad_out, create_graph=True), strict=True))
    return grads.get(id(x)), grads.get(id(weight))


def _within(x: Tensor) -> tuple[tuple[int, ...], int]:
    """The dimensions of x (K, n, C, *positions) that a statistic runs over, and the number of values there."""
    return (1, *range(3, x.dim())), x.numel() // (x.shape[0] * x.shape[2])


def _workspace(result: Tensor) -> Tensor:
    """`result` itself, or a float32 tensor like it if `result` is of half precision, too coarse for statistics.

    The computation stays within this one buffer: on a CPU a fresh large one costs more than a further pass.
    """
    half = result.dtype in (torch.float16, torch.bfloat16)
    return torch.empty_like(result, dtype=torch.float32) if half else result


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A (C,) parameter in the shape that broadcasts against x (K, n, C, *positions)."""
    return parameter.view(-1, *[1] * (x.dim() - 3))
