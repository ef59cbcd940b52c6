"""Interleaved timing: what is to be compared runs in turn, so that a busy machine slows all of it alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """How large a measurement is: the blocks of interleaved runs, and the model of whole steps."""

    device: torch.device
    blocks: int
    model: str = "resnet18"
    batch_size: int = 32
    image_size: int = 32
    compiled: bool = False


@dataclass(frozen=True)
class Span:
    """Seconds on the wall, and of this process's threads on the CPU: other work on the machine adds to the first."""

    wall: float
    cpu: float


class Stopwatch:
    """Started when it is made; a GPU is waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        synchronize(device)
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> Span:
        synchronize(self.device)
        wall, cpu = self._start
        return Span(time.perf_counter() - wall, time.process_time() - cpu)


def synchronize(device: torch.device) -> None:
    """Wait for the device, where it works by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Arm:
    """One way of doing a thing. `prepare` runs before each `run`, untimed."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def interleaved(
    arms: Mapping[str, Arm], *, blocks: int, repeats: int, device: torch.device, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of a run of each arm, one number a block: the mean over `repeats` runs.

    In each block every arm runs once, in an order that rotates; before the first block each has run twice. `clock` is a
    field of `Span`.
    """
    names = list(arms)
    for name in names * 2:
        arms[name].prepare()
        arms[name].run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(statistics.mean(_timed(arms[name], device, clock) for _ in range(repeats)))
    return seconds


def _timed(arm: Arm, device: torch.device, clock: str) -> float:
    arm.prepare()
    watch = Stopwatch(device)
    arm.run()
    return getattr(watch.read(), clock)


def kept_for_backward(run: Callable[[], object], parameters: set[int]) -> int:
    """Bytes of the tensors that autograd keeps in `run()`, each storage once; those in `parameters` are not counted.

    `parameters` are data pointers of storages that exist anyway.
    """
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = run()
    assert alive is not None  # holds the graph until here, so that no storage is used twice
    return sum(storages.values())
