"""Synchronized batch norm: statistics over the samples of all devices, by torch's own layer."""

from __future__ import annotations

from torch import Tensor, nn

from runner.layers.surgery import refuse_modules
from runner.layers.sync_batch_norm import SYNC_BATCH_NORMS, SyncBatchNorm
from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS
from runner.methods.method import Method
from runner.methods.norm_replacement import PLAIN_BATCH_NORMS, batch_norms, replace_batch_norms


def apply_sync_batchnorm(model: nn.Module) -> int:
    """Turn the batch norms of `model` into synchronized ones, in place; return how many were changed.

    In training the mean and the variance are those of the whole mini-batch over all devices of the default process
    group; evaluation, and training without such a group, are plain batch norm's. The layers compute what
    `nn.SyncBatchNorm` does, on a CPU too. Unlike torch's converter, this function keeps hooks and shared layers, and
    refuses subclasses of batch norm. Parameter and buffer objects, training flags and state-dict keys stay, so an
    optimizer made before goes on training the model, and checkpoints load both ways. A model whose batch norms already
    are synchronized stays as it is, and the function returns 0.

    Raises ValueError, and changes nothing, if there is no batch norm, if the model itself is one, for ghost batch norms
    (whose statistics over a few samples are the opposite), and for lazy or other subclasses of batch norm.

    >>> from torch import nn
    >>> from runner.methods import apply_sync_batchnorm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> apply_sync_batchnorm(model)
    1
    >>> type(model[1]).__name__
    'SyncBatchNorm'
    """
    refuse_modules(
        model,
        tuple(GHOST_BATCH_NORMS.values()),
        "its statistics over a few samples are the opposite of those over all devices; choose one of the two",
    )
    norms = batch_norms(model, "become synchronized", (*PLAIN_BATCH_NORMS, *SYNC_BATCH_NORMS))
    plain = {name: norm for name, norm in norms.items() if isinstance(norm, PLAIN_BATCH_NORMS)}
    return replace_batch_norms(model, plain, _synchronized, is_converted=bool(norms))


def _synchronized(norm: nn.modules.batchnorm._BatchNorm) -> SyncBatchNorm:
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return SyncBatchNorm(*settings, device="meta")  # it takes over the tensors of `norm`


class SyncBatchNormMethod(Method):
    """Batch norm over all devices; see `apply_sync_batchnorm`."""

    order = 20
    counted = "batch norms"

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_sync_batchnorm(model)
