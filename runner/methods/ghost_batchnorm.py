"""Ghost batch normalization (Hoffer et al. 2017, arXiv 1705.08741): batch statistics over a few samples at a time.

In training each ghost batch B_i (consecutive samples; see `ghost_batch_sizes`) has its own statistics,

    y = (x - mean(B_i)) / sqrt(var(B_i) + eps) * weight + bias,

over its samples and positions, with the biased variance. Evaluation, parameters, buffers and state-dict keys are those
of plain batch norm. A single ghost batch is plain batch norm.

The means mu_i and the unbiased variances of the K ghost batches update the running statistics one after the other,

    mu <- (1 - s)^K mu + sum_i s (1 - s)^(K - i) mu_i,    i = 1..K.

`running_stats` chooses the step s: "scaled" takes s = momentum / K, so that a mini-batch weighs about as much as in
plain batch norm; "sequential" takes s = momentum (Hoffer et al.): at momentum 0.1, 8 ghost batches weigh 0.57.

With momentum=None the running statistics are, as in plain batch norm, the mean over all mini-batches so far, each with
the mean over its ghost batches; both rules agree. `num_batches_tracked` counts mini-batches.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.limits import check
from runner.layers.ghost_normalize import ghost_normalize
from runner.layers.norm_act import drop_activation_hook, has_activation, is_norm_act, norm_class
from runner.layers.surgery import nothing_to_change, refuse_modules, replace_modules
from runner.layers.sync_batch_norm import SYNC_BATCH_NORMS
from runner.layers.tracing import leaf_call, not_scriptable
from runner.methods.method import Method


def ghost_batch_sizes(batch_size: int, ghost_batch_size: int) -> list[int]:
    """The sizes of the ghost batches of a mini-batch of `batch_size` samples, in order.

    Each has `ghost_batch_size` samples. A remainder smaller than half a ghost batch joins the last one, a larger one is
    a ghost batch of its own. A mini-batch smaller than a ghost batch is one ghost batch.

    >>> from runner.methods.ghost_batchnorm import ghost_batch_sizes
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
    """The base of the layers below; the module's docstring gives the equations."""

    def __init__(
        self, num_features: int, *args, ghost_batch_size: int = 32, running_stats: str = "scaled", **kwargs
    ) -> None:
        check("ghost_batchnorm", ghost_batch_size=ghost_batch_size, running_stats=running_stats)
        super().__init__(num_features, *args, **kwargs)
        self.ghost_batch_size = ghost_batch_size
        self.running_stats = running_stats

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return leaf_call(self, x)
        self._check_input_dim(x)
        sizes = ghost_batch_sizes(len(x), self.ghost_batch_size) if self.training else []
        return super().forward(x) if len(sizes) < 2 else self._forward_ghosts(x, sizes)

    def forward_relu(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(self(x)) or, with a residual, relu(self(x) + residual), in training: the sum and the ReLU cost no pass.

        Hooks do not run; `runner.layers.norm_relu.can_fuse` tells when to call this.
        """
        sizes = ghost_batch_sizes(len(x), self.ghost_batch_size)
        if len(sizes) < 2 or (residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype)):
            out = self.forward(x)
            return (out if residual is None else out + residual).relu_()
        self._check_input_dim(x)
        return self._forward_ghosts(x, sizes, relu=True, residual=residual)

    def _forward_ghosts(self, x: Tensor, sizes: list[int], **after: object) -> Tensor:
        if min(sizes) * x.shape[2:].numel() == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x[:1].shape} in a ghost batch "
                f"(ghost_batch_size={self.ghost_batch_size}, mini-batch of {len(x)} samples): use larger ghost batches"
            )
        out, mean, var = ghost_normalize(x, self.weight, self.bias, sizes, self.eps, **after)
        if self.track_running_stats and self.running_mean is not None:
            self._update_running_stats(mean, var)
        return out

    def _update_running_stats(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics with the means and unbiased variances of K ghost batches, each (K, C)."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        count = len(mean)
        if self.momentum is None:
            share = self.num_batches_tracked.to(mean.dtype).reciprocal()
            self.running_mean.copy_(torch.lerp(self.running_mean.to(mean.dtype), mean.mean(0), share))
            self.running_var.copy_(torch.lerp(self.running_var.to(mean.dtype), var.mean(0), share))
            return
        step = self.momentum / count if self.running_stats == "scaled" else self.momentum
        # a stand-in for a tensor, such as a compiler's, must not be cached
        is_real = type(mean) is Tensor and not torch.compiler.is_compiling()
        weights_of = _cached_weights_of_updates if is_real else _weights_of_updates
        weights = weights_of(step, count, mean.dtype, mean.device)
        for running, statistics in (self.running_mean, mean), (self.running_var, var):
            into = running if running.dtype == mean.dtype else running.to(mean.dtype)
            into.addmv_(statistics.t(), weights, beta=(1 - step) ** count)
            if into is not running:
                running.copy_(into)

    def __prepare_scriptable__(self) -> nn.Module:
        raise not_scriptable(self, "fold_ghost_batchnorm(model) first turns it into plain batch norm")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}, running_stats={self.running_stats}"


def _weights_of_updates(step: float, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """s (1 - s)^(K - i) for i = 1..K: the weights of K values after K updates with step s."""
    weights = [step * (1 - step) ** (count - i) for i in range(1, count + 1)]
    return torch.tensor(weights, dtype=dtype, device=device)


_cached_weights_of_updates = lru_cache(maxsize=64)(_weights_of_updates)


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d, for (N, C) or (N, C, L), over ghost batches of `ghost_batch_size` samples.

    >>> import torch
    >>> from runner.methods import GhostBatchNorm1d
    >>> norm = GhostBatchNorm1d(1, eps=0, ghost_batch_size=2)
    >>> norm(torch.tensor([[1.0], [3.0], [10.0], [30.0]])).flatten()  # two ghost batches
    tensor([-1.,  1., -1.,  1.], grad_fn=<...>)
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d, for (N, C, H, W), over ghost batches of `ghost_batch_size` samples.

    >>> import torch
    >>> from runner.methods import GhostBatchNorm2d
    >>> norm, plain = GhostBatchNorm2d(3, ghost_batch_size=32), torch.nn.BatchNorm2d(3)
    >>> x = torch.randn(100, 3, 4, 4)  # ghost batches of 32, 32 and 36
    >>> torch.allclose(norm(x)[64:], plain(x[64:]), atol=1e-5)
    True
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d, for (N, C, D, H, W), over ghost batches of `ghost_batch_size` samples.

    >>> import torch
    >>> from runner.methods import GhostBatchNorm3d
    >>> norm = GhostBatchNorm3d(3, ghost_batch_size=4)
    >>> out = norm(torch.randn(9, 3, 2, 4, 4))  # ghost batches of 4 and 5
    >>> torch.allclose(out[:4].mean((0, 2, 3, 4)), torch.zeros(3), atol=1e-6)
    True
    """


GHOST_BATCH_NORMS = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


def apply_ghost_batchnorm(model: nn.Module, *, ghost_batch_size: int = 32, running_stats: str = "scaled") -> int:
    """Turn the batch norms of `model` into ghost batch norms, in place; return how many layers were changed.

    Parameter and buffer objects, hooks and state-dict keys stay: an optimizer made before goes on training the model,
    and checkpoints load both ways. Layers that already are ghost batch norms take the new settings, and count if these
    differ from theirs.

    Raises ValueError if there is no batch norm, if the model itself is one, and for SyncBatchNorm (whose statistics
    over devices are the opposite), lazy layers and other subclasses of batch norm.

    >>> from torchvision.models import resnet18
    >>> from runner.methods import apply_ghost_batchnorm
    >>> model = resnet18()
    >>> apply_ghost_batchnorm(model, ghost_batch_size=16)
    20
    >>> model.bn1.ghost_batch_size
    16
    """
    settings = {"ghost_batch_size": ghost_batch_size, "running_stats": running_stats}
    check("ghost_batchnorm", **settings)
    refuse_modules(
        model,
        lambda module: isinstance(module, SYNC_BATCH_NORMS),
        "it shares its statistics over devices, the opposite of a ghost batch; choose one of the two",
    )
    known = (*GHOST_BATCH_NORMS, *GHOST_BATCH_NORMS.values())
    refuse_modules(
        model,
        lambda module: isinstance(module, _BatchNorm) and norm_class(module) not in known,
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
        return GHOST_BATCH_NORMS[norm_class(plain)](
            plain.num_features,
            plain.eps,
            plain.momentum,
            plain.affine,
            plain.track_running_stats,
            device="meta",  # parameters and buffers are carried over
            **settings,
        )

    changed += replace_modules(model, tuple(GHOST_BATCH_NORMS), make)
    if not changed and not converted:
        raise nothing_to_change(model, "batch norm (nn.BatchNorm1d, 2d, 3d)")
    return changed


def fold_ghost_batchnorm(model: nn.Module) -> int:
    """Turn the ghost batch norms of `model` into plain ones, in place; return how many.

    Parameter and buffer objects, hooks and state-dict keys stay, and timm's `BatchNormAct2d` comes back where it was.
    Evaluation is the same to the bit; training from then on takes the statistics of the whole mini-batch. For
    torch.jit.script and other tools that take torch's own layers alone. Raises ValueError if there is no ghost batch
    norm, and if the model itself is one.

    >>> from torchvision.models import resnet18
    >>> from runner.methods import apply_ghost_batchnorm, fold_ghost_batchnorm
    >>> model = resnet18()
    >>> apply_ghost_batchnorm(model), fold_ghost_batchnorm(model), type(model.bn1).__name__
    (20, 20, 'BatchNorm2d')
    """
    plain_class = {ghost: plain for plain, ghost in GHOST_BATCH_NORMS.items()}

    def make(ghost: _BatchNorm) -> _BatchNorm:
        kind = sys.modules["timm.layers"].BatchNormAct2d if has_activation(ghost) else plain_class[type(ghost)]
        settings = (ghost.num_features, ghost.eps, ghost.momentum, ghost.affine, ghost.track_running_stats)
        return kind(*settings, device="meta")

    changed = replace_modules(model, tuple(plain_class), make)
    if not changed:
        raise nothing_to_change(model, "ghost batch norms (GhostBatchNorm1d, 2d, 3d)")
    for module in filter(is_norm_act, model.modules()):
        drop_activation_hook(module)
    return changed


class GhostBatchNormMethod(Method):
    """Ghost batch norm in place of batch norm; see `apply_ghost_batchnorm`."""

    order = 20
    capturable = True
    counted = "batch norms"

    def __init__(self, *, ghost_batch_size: int = 32, running_stats: str = "scaled") -> None:
        check("ghost_batchnorm", ghost_batch_size=ghost_batch_size, running_stats=running_stats)
        self.ghost_batch_size = ghost_batch_size
        self.running_stats = running_stats

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_ghost_batchnorm(model, ghost_batch_size=self.ghost_batch_size, running_stats=self.running_stats)
