"""Batch norm over the batches of all ranks; unlike torch's, on a CPU too."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Computes what `nn.SyncBatchNorm` does: on a GPU with its kernels, on a CPU with two sums over the ranks,

        mean = sum_r sum(x) / N    var = sum_r sum((x - mean)^2) / N    y = (x - mean) / sqrt(var + eps) * weight + bias

    over N values a channel, those of all ranks r. The running variance takes var * N / (N - 1). Evaluation, and
    training in a single process, are plain batch norm. Inputs are (B, C, ...) and may differ in size between ranks.
    It is no subclass of torch's layer because DistributedDataParallel refuses that on a CPU.
    """

    process_group = None  # the default one
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if input.device.type != "cpu" or not self.training or not several:
            return nn.SyncBatchNorm.forward(self, input)
        self._check_input_dim(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, x.dim())]
        mean, number = self._over_ranks(x.sum(dims), x.numel() // x.shape[1])
        centered = x - along_channels(mean / number, x)
        var = _Summed.apply(centered.square().sum(dims)) / number
        self._update((mean / number).detach(), var.detach() * (number / (number - 1)))
        out = centered * along_channels((var + self.eps).rsqrt(), x)
        if self.affine:
            out = out * along_channels(self.weight, x) + along_channels(self.bias, x)
        return out.to(input.dtype)

    def _over_ranks(self, total: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The sums over the ranks of `total`, (C,), and of `number`, in one all-reduce."""
        both = _Summed.apply(torch.cat([total, total.new_tensor([number])]))
        return both[:-1], both[-1].detach()

    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Update the running statistics with those of the batch."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), momentum)


class _Summed(torch.autograd.Function):
    """The sum over the ranks. A rank's values enter every rank's loss, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Summed.forward(ctx, gradient)


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) in a shape that goes along the channels of `x` (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


SYNC_BATCH_NORMS = (nn.SyncBatchNorm, SyncBatchNorm)
