"""Instance norm (Ulyanov et al. 2016, arXiv 1607.08022) in place of batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from runner.layers.norm_act import norm_class
from runner.layers.surgery import carry_over
from runner.layers.sync_batch_norm import SYNC_BATCH_NORMS
from runner.layers.tracing import leaf_call
from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS
from runner.methods.method import Method
from runner.methods.norm_replacement import batch_norms, replace_batch_norms


class _BatchedInstanceNorm(_InstanceNorm):
    """The base of the layers below, without buffers for running statistics, which `carry_over` would fill."""

    num_dims: int  # of the input, with those of the batch and the channels

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine=affine, device=device, dtype=dtype)
        self._buffers.clear()
        self.running_mean = self.running_var = self.num_batches_tracked = None

    def forward(self, input: Tensor) -> Tensor:
        return leaf_call(self, input) if isinstance(input, Proxy) else super().forward(input)

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script: torch's own layer with the same parameters, which computes the same."""
        plain = type(self).__bases__[1](self.num_features, self.eps, affine=self.affine, device="meta")
        carry_over(self, plain)
        return plain

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != self.num_dims:
            raise ValueError(
                f"expected {self.num_dims}D input (got {input.dim()}D input): instance norm takes its statistics over "
                "the positions of each channel; for an input without positions, of shape (N, C), choose another norm"
            )
        if input.numel() == input.shape[0] * input.shape[1] > 0:
            raise ValueError(
                f"instance norm of a single position gives 0 whatever the input, which has shape {tuple(input.shape)}: "
                "use larger images, or choose another norm"
            )

    def _load_from_state_dict(self, *args) -> None:
        # torch's own raises an error for running statistics in a state dict without a version, such as any dict of
        # tensors, even with strict=False. Here they are unexpected keys, as in every layer.
        _NormBase._load_from_state_dict(self, *args)


class InstanceNorm1d(_BatchedInstanceNorm, nn.InstanceNorm1d):
    """nn.InstanceNorm1d, for (N, C, L) only: torch's takes an (N, C) input for one sample of C channels."""

    num_dims = 3


class InstanceNorm2d(_BatchedInstanceNorm, nn.InstanceNorm2d):
    """nn.InstanceNorm2d, for (N, C, H, W) only."""

    num_dims = 4


class InstanceNorm3d(_BatchedInstanceNorm, nn.InstanceNorm3d):
    """nn.InstanceNorm3d, for (N, C, D, H, W) only."""

    num_dims = 5


_INSTANCE_NORMS = {
    nn.BatchNorm1d: InstanceNorm1d,
    nn.BatchNorm2d: InstanceNorm2d,
    nn.BatchNorm3d: InstanceNorm3d,
    **dict.fromkeys(SYNC_BATCH_NORMS, InstanceNorm2d),
}
_INSTANCE_NORMS |= {ghost: _INSTANCE_NORMS[plain] for plain, ghost in GHOST_BATCH_NORMS.items()}


def apply_instance_norm(model: nn.Module) -> int:
    """Replace the batch norms of `model` by instance norms, in place; return how many were replaced.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over the positions of one channel
    of one sample (Ulyanov et al. 2016, arXiv 1607.08022), and batch norm's weight and bias, in training and in
    evaluation; there are no running statistics. Plain and ghost batch norms become the `nn.InstanceNorm1d/2d/3d` of
    their dimension. An `nn.SyncBatchNorm`, which does not know its dimension, becomes a 2d one.

    The forward pass raises ValueError for an input without positions (N, C), and for feature maps of one position,
    which would all turn to 0. See `apply_group_norm` for all else.

    >>> from torch import nn
    >>> from runner.methods import apply_instance_norm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> apply_instance_norm(model)
    1
    >>> isinstance(model[1], nn.InstanceNorm2d)
    True
    """

    def make(norm: _BatchNorm) -> _BatchedInstanceNorm:
        return _INSTANCE_NORMS[norm_class(norm)](norm.num_features, norm.eps, norm.affine, device="meta")

    return replace_batch_norms(
        model,
        batch_norms(model, "become instance norms"),
        make,
        is_converted=any(isinstance(module, _InstanceNorm) for module in model.modules()),
    )


class InstanceNormMethod(Method):
    """Instance norm in place of batch norm; see `apply_instance_norm`."""

    order = 10
    capturable = True
    counted = "batch norms replaced"

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_instance_norm(model)
