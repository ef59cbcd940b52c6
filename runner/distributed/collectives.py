"""The processes that train one model together: who this one is, and what they tell each other.

With a single process everything here gives back what it was given, at no cost. `device` tensors travel by the
device's own back end (NCCL on GPUs), objects and flags by gloo.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
TIMED_OUT = ("Timed out waiting", "timed out", "Timeout(ms)")  # gloo, the store, NCCL
GONE = ("Connection closed", "Connection reset", "Broken pipe")


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """The number of this process, 0 for the first or only one, which alone writes."""
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if is_distributed() else 1


@contextmanager
def process_group(device: torch.device, *, timeout: float = 1800.0) -> Iterator[None]:
    """Join the processes that torch's launcher started, as its environment variables tell.

    `timeout` is how many seconds one waits for another, which evaluates or writes a checkpoint meanwhile.
    """
    global _timeout
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _timeout = timedelta(seconds=timeout)
    distributed.init_process_group(backend, timeout=_timeout)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def is_timeout(reason: str) -> bool:
    """Whether an error's text is that of a wait for another rank that was given up."""
    return any(words in reason for words in TIMED_OUT)


def is_gone(reason: str) -> bool:
    """Whether an error's text is that of a wait for another rank that has died."""
    return any(words in reason for words in GONE)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor on each of them."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total


def all_reduce_min(tensor: Tensor) -> Tensor:
    """The smallest of every rank's values, entry by entry, on each of them."""
    if not is_distributed():
        return tensor
    least = tensor.clone()
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return least


def broadcast_object(value: T) -> T:
    """The first rank's value on each of them."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_gather_object(value: T) -> list[T]:
    """Every rank's value, in order, on each of them."""
    if not is_distributed():
        return [value]
    values: list[T] = [None] * world_size()
    distributed.all_gather_object(values, value, group=_on_cpu())
    return values


def any_rank(wish: bool) -> bool:
    """Whether any rank has a wish; all of them wait for the answer."""
    return bool(all_reduce_sum(torch.tensor(float(wish)))) if is_distributed() else wish


def barrier() -> None:
    """Go on when every rank has come here."""
    if is_distributed():
        distributed.all_reduce(torch.zeros(1))  # on the CPU, so that no GPU is waited for


def wrap_ddp(model: nn.Module, device: torch.device, *, unused_parameters: bool = False) -> nn.Module:
    """The model wrapped so that its gradients become the means over the ranks; itself with a single process.

    All ranks start from the first one's parameters and buffers. `unused_parameters` says that there are steps in which
    some parameters have no gradient, which the ranks then have to tell each other.
    """
    if not is_distributed():
        return model
    options = inspect.signature(DistributedDataParallel).parameters
    # buffers are brought together before evaluation instead, see `bring_buffers_together`
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        **{sync_buffers: False},
        find_unused_parameters=unused_parameters,
        gradient_as_bucket_view=not unused_parameters,
    )


def mean_of_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The model's floating-point buffers (running statistics), each the mean over the ranks; new tensors.

    Running statistics are linear in the batches' statistics, so that their mean is what every rank would have found
    with the means over all ranks at each step.
    """
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    if not is_distributed() or not buffers:
        return {}
    flat = torch.cat([buffer.detach().double().flatten() for buffer in buffers.values()])
    parts = (all_reduce_sum(flat) / world_size()).split([buffer.numel() for buffer in buffers.values()])
    return {
        name: part.view_as(buffer).to(buffer.dtype) for (name, buffer), part in zip(buffers.items(), parts, strict=True)
    }


def bring_buffers_together(model: nn.Module) -> None:
    """Give every rank's model the mean of the ranks' floating-point buffers; see `mean_of_buffers`."""
    means = mean_of_buffers(model)
    for name, buffer in model.named_buffers():
        if name in means:
            buffer.copy_(means[name])


class AsyncAnyRank:
    """What any rank wishes, told to all of them, so that they act on it after the same step.

    Each rank calls it after every step. With several ranks the answer is that to the wishes of the step before: so
    that nobody waits for a message, only for a rank that is a whole step behind.
    """

    def __init__(self) -> None:
        self._sent: tuple[Tensor, distributed.Work] | None = None

    def __call__(self, wishes: Sequence[bool]) -> list[bool]:
        if not is_distributed():
            return list(wishes)
        before = self._sent
        flags = torch.tensor(wishes, dtype=torch.int32)
        self._sent = (flags, distributed.all_reduce(flags, async_op=True))
        if before is None:
            return [False] * len(wishes)
        flags, work = before
        work.wait()
        return (flags > 0).tolist()

    def settle(self) -> None:
        """Wait for what is on its way; to be called before the ranks speak of something else at length."""
        if self._sent is not None:
            self._sent[1].wait()
            self._sent = None


def _on_cpu() -> distributed.ProcessGroup | None:
    """The group for objects, which `all_gather_object` would send by way of the GPU."""
    global _cpu_group
    if distributed.get_backend() == "gloo":
        return None
    if _cpu_group is None:
        _cpu_group = distributed.new_group(backend="gloo", timeout=_timeout)
    return _cpu_group


_cpu_group: distributed.ProcessGroup | None = None
_timeout: timedelta | None = None  # torch's own
