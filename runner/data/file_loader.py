"""Loading image files in DataLoader workers: samples and seeds go in, batches of bytes come out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runner.data.dataset import DataFault
from runner.data.loader_faults import POLL_SECONDS, in_shared_memory

Sample = tuple[Any, ...]  # the input of `load`; its first entry is a path, for messages
Load = Callable[[Sample], tuple[Tensor, int | Tensor]]
SeededSample = tuple[Sample, int]  # a sample and the seed under which it is loaded

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL's; SyntaxError is a broken PNG
MAX_WORKERS = 8  # by default


def make_loader(
    load: Load,
    batches: Iterable[list[SeededSample]],
    *,
    fill: Sequence[int],
    num_workers: int,
    persistent: bool,
    pin_memory: bool,
) -> DataLoader:
    """A DataLoader that returns a `LoadedBatch` for each of `batches`.

    Workers get the samples themselves in place of indices, so none of them holds the whole list. All that is passed
    can be pickled, for any start method.
    """
    return DataLoader(
        Reader(load),
        batch_sampler=batches,
        collate_fn=Collate(tuple(fill)),
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_main,
        persistent_workers=persistent and num_workers > 0,
        pin_memory=pin_memory,
        timeout=POLL_SECONDS if num_workers > 0 else 0,
        generator=torch.Generator(),  # else an epoch would draw from the global generator, which dropout uses
    )


class EpochSampler:
    """A batch sampler whose `batches` are set for each epoch, for persistent workers."""

    batches: Iterable[list[SeededSample]] = ()

    def __iter__(self) -> Iterator[list[SeededSample]]:
        return iter(self.batches)


@dataclass(frozen=True)
class Reader(Dataset):
    """Loads a sample under its seed, or returns why it cannot be read."""

    load: Load

    def __getitem__(self, seeded_sample: SeededSample) -> tuple[Tensor, int | Tensor] | str | DataFault:
        sample, seed = seeded_sample
        try:
            with seeded(seed):
                return self.load(sample)
        except READ_ERRORS as error:
            return str(error) or type(error).__name__
        except DataFault as error:  # to be raised in the main process
            return error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU, and give it its state back afterwards."""
    generator = torch.default_generator  # torch.manual_seed would seed the GPUs too
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


class LoadedBatch(NamedTuple):
    """The readable samples of a batch. Few tensors: each takes a file descriptor on its way from a worker."""

    images: Tensor | None  # (B, C, H, W) uint8
    targets: Tensor | None  # (B,) int64, or all masks, flattened and concatenated, uint8
    sizes: list[tuple[int, int]]  # of the images without their padding
    mask_shapes: list[tuple[int, int]]  # empty for classification
    failures: list[tuple[int, str]]  # (place in the batch, reason)
    fault: DataFault | None = None

    def pin_memory(self) -> LoadedBatch:
        """Called by the DataLoader."""
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
    """Collates the results of `Reader`; pads images with the colour `fill`."""

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
        stacked = self._stacked(images)
        if isinstance(targets[0], int):
            return in_shared_memory(LoadedBatch(stacked, torch.tensor(targets), sizes, [], failures))
        flat = torch.cat([mask.flatten() for mask in targets])
        shapes = [tuple(mask.shape) for mask in targets]
        return in_shared_memory(LoadedBatch(stacked, flat, sizes, shapes, failures))

    def _stacked(self, images: Sequence[Tensor]) -> Tensor:
        """The images (B, C, H, W), padded at the right and the bottom; channels last if they are so themselves."""
        height, width = (max(sides) for sides in zip(*(image.shape[1:] for image in images), strict=True))
        is_last = images[0].stride(0) == 1
        stacked = torch.empty(
            (len(images), len(images[0]), height, width),
            dtype=torch.uint8,
            memory_format=torch.channels_last if is_last else torch.contiguous_format,
        )
        for place, image in zip(stacked, images, strict=True):
            if image.shape[1:] != place.shape[1:]:
                place.copy_(torch.tensor(self.fill[: len(place)]).view(-1, 1, 1))
            place[:, : image.shape[1], : image.shape[2]] = image
        return stacked


def available_workers() -> int:
    """The number of CPU cores available to this process, at most `MAX_WORKERS`.

    Affinity, the quota of a container and LOKY_MAX_CPU_COUNT count, which a job has that runs beside others.
    """
    from joblib import cpu_count

    return min(cpu_count(), MAX_WORKERS)


def masks_of(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Views of the masks in the flat `targets` of a `LoadedBatch`."""
    parts = flat.split([height * width for height, width in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _pinned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.pin_memory()


def leave_signals_to_main(worker: int) -> None:
    """Ignore SIGINT in a worker, and SIGTERM unless the main process sent it, where the platform tells.

    Signals to the process group are the main process's to handle: a worker that died of one would end the run with an
    error, before its checkpoint is written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of_main, daemon=True).start()


def _exit_on_sigterm_of_main() -> None:
    main = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
