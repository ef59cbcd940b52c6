"""Image files read by loader processes: what a worker is told, what it does, and what it gives back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runner.data.dataset import DataFault
from runner.data.loader_faults import LOOK_EVERY_SECONDS, in_shared_memory

Sample = tuple[Any, ...]  # what `load` takes; the first entry is the path by which an unreadable sample is named
Load = Callable[[Sample], tuple[Tensor, int | Tensor]]
Entry = tuple[Sample, int]  # a sample and the seed under which it is loaded

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL's; SyntaxError is a broken PNG
MOST_WORKERS = 8  # where the number is left to the machine


def make_loader(
    load: Load,
    plan: Iterable[list[Entry]],
    *,
    fill: Sequence[int],
    num_workers: int,
    persistent: bool,
    pin_memory: bool,
) -> DataLoader:
    """A loader that gives a `LoadedBatch` for each list of entries in `plan`.

    The samples travel to the workers with the plan, so that none of them holds the list of all; what they take and
    give can be pickled, so that any way of starting processes will do.
    """
    return DataLoader(
        Reader(load),
        batch_sampler=plan,
        collate_fn=Collate(tuple(fill)),
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_main,
        persistent_workers=persistent and num_workers > 0,
        pin_memory=pin_memory,
        timeout=LOOK_EVERY_SECONDS if num_workers > 0 else 0,
        generator=torch.Generator(),  # else each epoch would draw from the generator that dropout uses
    )


class Plan:
    """The batches that a loader is to read; set anew for each epoch, since its workers stay."""

    batches: Iterable[list[Entry]] = ()

    def __iter__(self) -> Iterator[list[Entry]]:
        return iter(self.batches)


@dataclass(frozen=True)
class Reader(Dataset):
    """What the workers do: load a sample under its seed, or say why it cannot be read."""

    load: Load

    def __getitem__(self, entry: Entry) -> tuple[Tensor, int | Tensor] | str | DataFault:
        sample, seed = entry
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too, without a way back
            try:
                return self.load(sample)
            except UNREADABLE as error:
                return str(error) or type(error).__name__
            except DataFault as error:  # raised in the main process, where its message is shown as it is
                return error


class LoadedBatch(NamedTuple):
    """The readable samples of a batch: few tensors, since each of them takes a file handle on its way from a worker."""

    images: Tensor | None  # (B, 3, H, W) uint8
    targets: Tensor | None  # (B,) int64, or all masks flat, one behind the other, uint8
    sizes: list[tuple[int, int]]  # of the images without their padding
    mask_shapes: list[tuple[int, int]]  # empty for classification
    failures: list[tuple[int, str]]  # (place in the batch, reason)
    fault: DataFault | None = None

    def pin_memory(self) -> LoadedBatch:
        """The batch in page-locked memory; the loader calls this where it is asked for such."""
        return self._replace(images=_pinned(self.images), targets=_pinned(self.targets))

    def unpacked(self) -> list[tuple[Tensor, int | Tensor]]:
        """What `load` returned for each sample."""
        if self.images is None:
            return []
        images = [image[:, :height, :width] for image, (height, width) in zip(self.images, self.sizes, strict=True)]
        targets = masks_of(self.targets, self.mask_shapes) if self.mask_shapes else self.targets.tolist()
        return list(zip(images, targets, strict=True))


@dataclass(frozen=True)
class Collate:
    """Makes a batch of what was loaded, in a worker; `fill` is the colour of the padding."""

    fill: tuple[int, ...]

    def __call__(self, loaded: list[tuple[Tensor, int | Tensor] | str | DataFault]) -> LoadedBatch:
        for item in loaded:
            if isinstance(item, DataFault):
                return LoadedBatch(None, None, [], [], [], item)
        failures = [(place, item) for place, item in enumerate(loaded) if isinstance(item, str)]
        readable = [item for item in loaded if not isinstance(item, str)]
        if not readable:
            return LoadedBatch(None, None, [], [], failures)
        images, targets = zip(*readable, strict=True)
        sizes = [tuple(image.shape[1:]) for image in images]
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        stacked = torch.tensor(self.fill, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(images), 1, height, width)
        for place, image in zip(stacked, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        if isinstance(targets[0], int):
            return in_shared_memory(LoadedBatch(stacked, torch.tensor(targets), sizes, [], failures))
        flat = torch.cat([mask.flatten() for mask in targets])
        shapes = [tuple(mask.shape) for mask in targets]
        return in_shared_memory(LoadedBatch(stacked, flat, sizes, shapes, failures))


def available_workers() -> int:
    """One for each CPU core that the process may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def masks_of(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The masks of a `LoadedBatch`, as views of its flat `targets`."""
    parts = flat.split([height * width for height, width in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _pinned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.pin_memory()


def _leave_signals_to_main(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group, and are the main process's to answer.

    A worker that they ended would end the run with an error, before its checkpoint is written. The main process ends
    a worker by a SIGTERM too, so that it cannot be ignored altogether: who sent it is looked at, where that can be.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_says_so, daemon=True).start()


def _end_when_main_says_so() -> None:
    main = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
