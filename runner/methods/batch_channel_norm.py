"""Batch-channel normalization (Qiao et al. 2019, arXiv 1903.10520 and 1911.09738) in place of batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.limits import check
from runner.layers.norm_act import drop_activation_hook
from runner.layers.surgery import nothing_to_change, refuse_modules, replace_modules
from runner.layers.sync_batch_norm import SYNC_BATCH_NORMS
from runner.layers.tracing import leaf_call, not_scriptable
from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS
from runner.methods.groupnorm import group_norm
from runner.methods.method import Method
from runner.methods.norm_replacement import batch_norms, check_num_groups, placement_of, replace_batch_norms


class BatchChannelNorm2d(nn.BatchNorm2d):
    """Batch norm followed by group norm (Qiao et al. 2019, arXiv 1903.10520 and 1911.09738), for (N, C, H, W).

        z = (x - mu_c) / sqrt(var_c + eps) * weight_c + bias_c
        y = (z - mu_g) / sqrt(var_g + eps) * group_weight_g + group_bias_g

    with mu_g and the biased var_g over the positions and the C / num_groups channels of a group g, sample by sample.
    The second step has one scale and one shift for each *group*: `group_weight` and `group_bias` of shape
    (num_groups,). All else, in evaluation too, is plain batch norm's, with its parameters, buffers and keys.

    `estimate=False`: mu_c and var_c are the statistics of the mini-batch, as in plain batch norm, for large batches.

    `estimate=True`, for micro-batches: training normalizes with the running estimates, which it first updates, without
    gradient, with the step r = `momentum`, in this order (the authors' published code):

        s    = mean of (x - running_mean)^2 over samples and positions, about the estimate *before* its update
        running_mean <- (1 - r) running_mean + r mean(x)
        running_var  <- (1 - r) running_var + r s

    Here s is biased, where plain batch norm keeps the unbiased variance. For gradients the first step is an affine
    map, with mu_c and var_c as constants. momentum=None takes r = 1 / `num_batches_tracked`.

    Arguments are those of `nn.BatchNorm2d`; affine=False leaves out both affine parts. The output has the dtype of x.
    Raises ValueError if `num_groups` does not divide `num_features`, and for `estimate` without running statistics.

    >>> import torch
    >>> from runner.methods import BatchChannelNorm2d
    >>> norm = BatchChannelNorm2d(8, num_groups=2, estimate=True)
    >>> norm(torch.randn(1, 8, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    >>> list(norm.state_dict())[:4]
    ['weight', 'bias', 'group_weight', 'group_bias']
    """

    def __init__(self, num_features: int, *args, num_groups: int = 32, estimate: bool = False, **kwargs) -> None:
        check("batch_channel_norm", num_groups=num_groups)
        super().__init__(num_features, *args, **kwargs)
        check_num_groups(num_groups, {"the layer": self})
        if estimate and not self.track_running_stats:
            raise ValueError("estimate=True needs running statistics: set track_running_stats=True")
        self.num_groups = num_groups
        self.estimate = estimate
        for name, value in ("group_weight", 1.0), ("group_bias", 0.0):
            parameter = nn.Parameter(self.weight.new_full((num_groups,), value)) if self.affine else None
            self.register_parameter(name, parameter)

    def reset_parameters(self) -> None:
        """Set all parameters and running statistics to their initial values."""
        super().reset_parameters()
        if getattr(self, "group_weight", None) is not None:  # not yet there when nn.BatchNorm2d's constructor calls
            nn.init.ones_(self.group_weight)
            nn.init.zeros_(self.group_bias)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return leaf_call(self, x)
        self._check_input_dim(x)
        z = self._normalize_with_estimates(x) if self.training and self.estimate else super().forward(x)
        return group_norm(z, self.num_groups, *self._group_affine(), self.eps)

    def _normalize_with_estimates(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if x.numel() == 0:
                return (x * self.weight.view(-1, 1, 1)).to(x.dtype) if self.affine else x.clone()
            self.num_batches_tracked.add_(1)
            var, mean = torch.var_mean(x.to(self.running_mean.dtype), (0, 2, 3), correction=0)
            var += (mean - self.running_mean).square()
            step = self.momentum
            if step is None:
                step = self.num_batches_tracked.to(mean.dtype).reciprocal()
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(var, step)
            # Copies: the backward pass needs them, and the next forward pass may come first.
            mean, var = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def _group_affine(self) -> tuple[Tensor | None, Tensor | None]:
        """`group_weight` and `group_bias`, repeated for each channel of a group."""
        if self.group_weight is None:
            return None, None
        channels = self.num_features // self.num_groups
        # Not repeat_interleave, whose backward pass is slow.
        return tuple(p[:, None].expand(-1, channels).reshape(-1) for p in (self.group_weight, self.group_bias))

    def __prepare_scriptable__(self) -> nn.Module:
        raise not_scriptable(self, "fold_batch_channel_norm(model) first turns it into plain batch norm and group norm")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}, estimate={self.estimate}"


def apply_batch_channel_norm(model: nn.Module, *, num_groups: int = 32, estimate: bool = False) -> int:
    """Turn the batch norms of `model` into `BatchChannelNorm2d`, in place; return how many layers were changed.

    That layer's docstring gives the equations and explains `estimate`. Parameter and buffer objects, hooks and keys
    stay. `group_weight` and `group_bias` are new in each layer: a checkpoint of the unchanged model loads with
    strict=False, and back. An optimizer made before does not train them: make it afterwards, or add them as a parameter
    group. Layers that already are batch-channel norms of `num_groups` groups take the new `estimate`, and count if it
    differs from theirs.

    Raises ValueError, and changes nothing, if there is no `nn.BatchNorm2d`, if the model itself is one, if `num_groups`
    does not divide the features of a layer, for every other kind of batch norm, for batch-channel norms of another
    number of groups, and with `estimate` for a layer without running statistics.

    >>> from torch import nn
    >>> from runner.methods import apply_batch_channel_norm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> apply_batch_channel_norm(model, num_groups=4, estimate=True)
    1
    >>> model[1].group_weight.shape
    torch.Size([4])
    """
    check("batch_channel_norm", num_groups=num_groups)
    refuse_modules(
        model,
        (*SYNC_BATCH_NORMS, *GHOST_BATCH_NORMS.values()),
        "it takes its statistics over other samples than batch-channel norm does; choose one of the two",
    )
    norms = batch_norms(
        model, "become batch-channel norms, which are made for images", (nn.BatchNorm2d, BatchChannelNorm2d)
    )
    converted = {name: norm for name, norm in norms.items() if isinstance(norm, BatchChannelNorm2d)}
    plain = {name: norm for name, norm in norms.items() if name not in converted}
    check_num_groups(num_groups, plain)
    for name, norm in converted.items():
        if norm.num_groups != num_groups:
            raise ValueError(
                f"num_groups={num_groups}: {name or 'the model'} is a batch-channel norm of "
                f"{norm.num_groups} groups already; make the model anew to change their number"
            )
    for name, norm in norms.items():
        if estimate and not norm.track_running_stats:
            raise ValueError(
                f"estimate=True: {name or 'the model'} has no running statistics; set "
                "track_running_stats=True there, or estimate=False"
            )

    def make(norm: _BatchNorm) -> BatchChannelNorm2d:
        settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        return BatchChannelNorm2d(*settings, *placement_of(norm), num_groups=num_groups, estimate=estimate)

    changed = replace_batch_norms(model, plain, make, is_converted=bool(converted))
    for norm in converted.values():
        changed += norm.estimate != estimate
        norm.estimate = estimate
    return changed


def fold_batch_channel_norm(model: nn.Module) -> int:
    """Turn each batch-channel norm of `model` into an `nn.Sequential` of its `nn.BatchNorm2d` and an `nn.GroupNorm`.

    In place; returns how many. Evaluation is the same to the bit, and so is training without `estimate`. The batch
    norm keeps its Parameter and buffer objects; the group norm gets new ones, of one value a channel. Keys gain a "0."
    or "1.". Raises ValueError if there is no batch-channel norm, and if the model itself is one.

    >>> from torch import nn
    >>> from runner.methods import BatchChannelNorm2d, fold_batch_channel_norm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), BatchChannelNorm2d(8, num_groups=4))
    >>> fold_batch_channel_norm(model), type(model[1][1]).__name__
    (1, 'GroupNorm')
    """

    def make(norm: BatchChannelNorm2d) -> nn.Sequential:
        batch = nn.BatchNorm2d(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        batch._parameters = {name: norm._parameters[name] for name in batch._parameters}
        batch._buffers = dict(norm._buffers)
        group = nn.GroupNorm(norm.num_groups, norm.num_features, norm.eps, norm.affine, device="meta")
        for name, value in zip(("weight", "bias"), norm._group_affine(), strict=True):
            setattr(group, name, None if value is None else nn.Parameter(value.detach()))
        folded.append(nn.Sequential(batch, group).train(norm.training))
        return folded[-1]

    folded: list[nn.Sequential] = []
    changed = replace_modules(model, (BatchChannelNorm2d,), make)
    if not changed:
        raise nothing_to_change(model, "batch-channel norms (BatchChannelNorm2d)")
    for layers in folded:  # those of timm's BatchNormAct2d have its drop and act as further layers
        drop_activation_hook(layers)
    return changed


class BatchChannelNormalization(Method):
    """Batch-channel norm in place of batch norm; see `apply_batch_channel_norm`."""

    order = 10
    capturable = True
    counted = "batch norms replaced"

    def __init__(self, *, num_groups: int = 32, estimate: bool = False) -> None:
        check("batch_channel_norm", num_groups=num_groups)
        self.num_groups = num_groups
        self.estimate = estimate

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_batch_channel_norm(model, num_groups=self.num_groups, estimate=self.estimate)
