"""Normalization and regularization methods for any `torch.nn.Module`.

Each `apply_...` function changes a model in place, keeps its Parameter objects and the names in its state dict, and
returns the number of modules it changed.
"""

from __future__ import annotations

from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.layers.standardized_conv import cached_standardized_weights
from runner.layers.unitwise_norm import unitwise_norm
from runner.methods.agc import adaptive_clip_grad_
from runner.methods.batch_channel_norm import BatchChannelNorm2d, apply_batch_channel_norm, fold_batch_channel_norm
from runner.methods.cutmix import cutmix_batch
from runner.methods.dropout import apply_dropout
from runner.methods.fixup import FixupBias, FixupScale
from runner.methods.ghost_batchnorm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    apply_ghost_batchnorm,
    fold_ghost_batchnorm,
)
from runner.methods.groupnorm import apply_group_norm, apply_layer_norm
from runner.methods.instancenorm import apply_instance_norm
from runner.methods.mixup import mixup_batch
from runner.methods.none import SkipInit, remove_batchnorm
from runner.methods.precise_batchnorm import estimate_batchnorm_statistics
from runner.methods.stochastic_depth import apply_stochastic_depth, fold_stochastic_depth
from runner.methods.sync_batchnorm import apply_sync_batchnorm
from runner.methods.weight_standardization import (
    StdConv1d,
    StdConv2d,
    StdConv3d,
    apply_weight_standardization,
    fold_weight_standardization,
)

__all__ = [
    "BatchChannelNorm2d",
    "FixupBias",
    "FixupScale",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "ScaledStdConv2d",
    "SkipInit",
    "StdConv1d",
    "StdConv2d",
    "StdConv3d",
    "adaptive_clip_grad_",
    "apply_batch_channel_norm",
    "apply_dropout",
    "apply_ghost_batchnorm",
    "apply_group_norm",
    "apply_instance_norm",
    "apply_layer_norm",
    "apply_stochastic_depth",
    "apply_sync_batchnorm",
    "apply_weight_standardization",
    "cached_standardized_weights",
    "cutmix_batch",
    "estimate_batchnorm_statistics",
    "fold_batch_channel_norm",
    "fold_ghost_batchnorm",
    "fold_stochastic_depth",
    "fold_weight_standardization",
    "mixup_batch",
    "remove_batchnorm",
    "unitwise_norm",
]
