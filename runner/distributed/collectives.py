"""Collectives over the ranks that train one model together.

In a single process each function returns its input at no cost. Tensors travel by their device's backend (NCCL on
GPUs), objects and flags by gloo.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
TIMEOUT_TEXTS = ("Timed out waiting", "timed out", "Timeout(ms)")  # gloo, the store, NCCL
CONNECTION_LOST_TEXTS = ("Connection closed", "Connection reset", "Broken pipe")


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """The rank of this process. Rank 0, the first or only one, writes all files."""
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of ranks."""
    return distributed.get_world_size() if is_distributed() else 1


@contextmanager
def process_group(device: torch.device, *, timeout: float = 1800.0) -> Iterator[None]:
    """Join the process group that the launcher's environment variables describe, in this context.

    A rank waits at most `timeout` seconds for another, which may be evaluating or writing a checkpoint.
    """
    global _timeout
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _timeout = timedelta(seconds=timeout)
    distributed.init_process_group(backend, timeout=_timeout)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def is_timeout(error: str) -> bool:
    """Whether an error message says that a collective timed out."""
    return any(text in error for text in TIMEOUT_TEXTS)


def is_connection_lost(error: str) -> bool:
    """Whether an error message says that another rank has died."""
    return any(text in error for text in CONNECTION_LOST_TEXTS)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The elementwise sum over the ranks, as a new tensor."""
    return _all_reduce(tensor, distributed.ReduceOp.SUM)


def all_reduce_min(tensor: Tensor) -> Tensor:
    """The elementwise minimum over the ranks, as a new tensor."""
    return _all_reduce(tensor, distributed.ReduceOp.MIN)


def _all_reduce(tensor: Tensor, op: distributed.ReduceOp.RedOpType) -> Tensor:
    if not is_distributed():
        return tensor
    result = tensor.clone()
    distributed.all_reduce(result, op=op)
    return result


def broadcast_object(value: T) -> T:
    """Rank 0's value."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_gather_object(value: T) -> list[T]:
    """The values of all ranks, in order."""
    if not is_distributed():
        return [value]
    values: list[T] = [None] * world_size()
    distributed.all_gather_object(values, value, group=_cpu_process_group())
    return values


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. Blocks until all ranks have called it."""
    return bool(all_reduce_sum(torch.tensor(float(flag)))) if is_distributed() else flag


def barrier() -> None:
    """Block until all ranks have called it."""
    if is_distributed():
        distributed.all_reduce(torch.zeros(1))  # on the CPU: does not wait for a GPU


def wrap_ddp(model: nn.Module, device: torch.device, *, find_unused_parameters: bool = False) -> nn.Module:
    """The model in DistributedDataParallel, which averages gradients over the ranks; the model itself for one rank.

    Ranks start with rank 0's parameters and buffers. Buffers are averaged before an evaluation, not in each forward
    pass: see `all_reduce_buffers`. `find_unused_parameters`: True if some parameters may get no gradient in a step.
    """
    if not is_distributed():
        return model
    options = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        **{sync_buffers: False},
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=not find_unused_parameters,
    )


def floating_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The model's floating-point buffers, its running statistics, by name."""
    return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def mean_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The mean over the ranks of each floating-point buffer, as new tensors. Empty for one rank.

    Running statistics are linear in the batch statistics. So their mean equals what a rank would have computed from
    the mean batch statistics of all ranks in every step.
    """
    buffers = floating_buffers(model)
    if not is_distributed() or not buffers:
        return {}
    flat = torch.cat([buffer.detach().double().flatten() for buffer in buffers.values()])
    means = (all_reduce_sum(flat) / world_size()).split([buffer.numel() for buffer in buffers.values()])
    return {
        name: mean.view_as(buffer).to(buffer.dtype) for (name, buffer), mean in zip(buffers.items(), means, strict=True)
    }


def all_reduce_buffers(model: nn.Module) -> None:
    """Set each floating-point buffer to its mean over the ranks, in place."""
    buffers = floating_buffers(model)
    for name, mean in mean_buffers(model).items():
        buffers[name].copy_(mean)


class AsyncAnyRank:
    """`any_rank` for several flags without blocking, so that all ranks act on a flag after the same step.

    Each rank calls `poll` after every step. The result lags one step, so a rank blocks only if another is a full step
    behind. In a single process the result is immediate.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, distributed.Work] | None = None

    def poll(self, *flags: bool) -> list[bool]:
        """Send this step's flags; return, for each of the previous step's, whether it was true on any rank."""
        if not is_distributed():
            return list(flags)
        previous = self._pending
        sent = torch.tensor(flags, dtype=torch.int32)
        self._pending = (sent, distributed.all_reduce(sent, async_op=True))
        if previous is None:
            return [False] * len(flags)
        result, work = previous
        work.wait()
        return (result > 0).tolist()

    def wait(self) -> None:
        """Finish the pending reduction. Call it before another collective that may take long."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None


def _cpu_process_group() -> distributed.ProcessGroup | None:
    """A gloo group for objects, which `all_gather_object` would send through the GPU."""
    global _cpu_group
    if distributed.get_backend() == "gloo":
        return None
    if _cpu_group is None:
        _cpu_group = distributed.new_group(backend="gloo", timeout=_timeout)
    return _cpu_group


_cpu_group: distributed.ProcessGroup | None = None
_timeout: timedelta | None = None  # None: torch's default
