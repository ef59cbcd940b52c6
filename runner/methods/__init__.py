"""Normalization and regularization methods for any `torch.nn.Module`.

Each `apply_...` function changes a model in place, keeps its Parameter objects and the names in its state dict, and
returns the number of modules it changed.
"""

from __future__ import annotations

from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.methods.agc import adaptive_clip_grad_, unitwise_norm
from runner.methods.ghost_batchnorm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, apply_ghost_batchnorm
from runner.methods.groupnorm import apply_group_norm
from runner.methods.none import SkipInit, remove_batchnorm
from runner.methods.stochastic_depth import apply_stochastic_depth
from runner.methods.weight_standardization import (
    StdConv1d,
    StdConv2d,
    StdConv3d,
    apply_weight_standardization,
    fold_weight_standardization,
)

__all__ = [
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "ScaledStdConv2d",
    "SkipInit",
    "StdConv1d",
    "StdConv2d",
    "StdConv3d",
    "adaptive_clip_grad_",
    "apply_ghost_batchnorm",
    "apply_group_norm",
    "apply_stochastic_depth",
    "apply_weight_standardization",
    "fold_weight_standardization",
    "remove_batchnorm",
    "unitwise_norm",
]
