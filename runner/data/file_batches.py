"""Batches from image files: read and augmented by loader processes, bytes to the device, normalized there.

What is random in a sample is drawn under a seed of its own, made of (seed, epoch, index of the sample). So a batch
depends on nothing but the seed, the epoch and its place: not on the number of workers, nor on where an epoch began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runner.data.batches import Normalization
from runner.data.dataset import (
    CLASSIFICATION,
    SPLITS,
    Data,
    DataFault,
    EvaluationBatches,
    Label,
    TrainBatches,
    check_batch_size,
)
from runner.data.file_loader import (
    Entry,
    Load,
    LoadedBatch,
    Plan,
    Sample,
    available_workers,
    make_loader,
    masks_of,
)
from runner.data.first_look import named, unseen_classes
from runner.data.loader_faults import batches_of
from runner.data.seeds import mixed_seed
from runner.data.shards import WHOLE, Shard

TIMEOUT_SECONDS = 300.0  # without a batch


@dataclass(frozen=True, kw_only=True)
class FileData(Data):
    """A data set that lies in files; each split is a sequence of samples, which `load_...` reads.

    `load_train` and `load_evaluation` are picklable; see FileTrainBatches and FileEvaluationBatches for what they
    return. `num_workers=None` is one for each CPU core that the process may use, 8 at most.
    """

    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    load_train: Load
    load_evaluation: Load
    num_workers: int | None = None
    max_unreadable: int = 0
    timeout_seconds: float = TIMEOUT_SECONDS

    def unseen_classes(self) -> dict[str, list[str]]:
        if self.task != CLASSIFICATION:
            return {}
        return {name: unseen_classes(getattr(self, name), self.class_names, self.unreadable) for name in SPLITS}

    def train_batches(
        self, *, batch_size: int, seed: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> FileTrainBatches:
        check_batch_size(batch_size, self)
        return FileTrainBatches(
            self,
            self.train,
            self.load_train,
            seed=seed,
            batch_size=batch_size,
            device=device,
            channels_last=channels_last,
            num_workers=self.num_workers,
            max_unreadable=self.max_unreadable,
            timeout_seconds=self.timeout_seconds,
            shard=shard,
        )

    def evaluation_batches(
        self, split: str, *, batch_size: int, device: torch.device, channels_last: bool = False, shard: Shard = WHOLE
    ) -> FileEvaluationBatches:
        return FileEvaluationBatches(
            self,
            getattr(self, split),
            self.load_evaluation,
            batch_size=batch_size,
            device=device,
            channels_last=channels_last,
            num_workers=self.num_workers,
            max_unreadable=self.max_unreadable,
            timeout_seconds=self.timeout_seconds,
            shard=shard,
        )


class _Files:
    """The samples of one split, the loader that reads them, and the record of those that cannot be read."""

    def __init__(
        self,
        data: Data,
        samples: Sequence[Sample],
        load: Load,
        *,
        batch_size: int,
        device: torch.device,
        channels_last: bool = False,
        num_workers: int | None = 0,
        max_unreadable: int = 0,
        timeout_seconds: float = TIMEOUT_SECONDS,
        shard: Shard = WHOLE,
    ) -> None:
        self.samples = samples
        self.shard = shard
        self.num_classes = data.num_classes
        self.batch_size = batch_size
        self.device = device
        self.channels_last = channels_last
        self.num_workers = available_workers() if num_workers is None else num_workers
        self.max_unreadable = max_unreadable
        self.timeout_seconds = timeout_seconds
        self.unreadable = data.unreadable
        self.load = load
        self.fill = (data.mean * 255).round().int().tolist()
        self.normalized = Normalization(data, of_bytes=True, device=device, channels_last=channels_last)

    def loader(self, plan: Iterable[list[Entry]], *, persistent: bool) -> DataLoader:
        """See make_loader."""
        return make_loader(
            self.load,
            plan,
            fill=self.fill,
            num_workers=self.num_workers,
            persistent=persistent,
            pin_memory=self.device.type == "cuda",
        )

    def loaded(self, loader: DataLoader) -> Iterator[LoadedBatch]:
        """See batches_of."""
        return batches_of(loader, self.timeout_seconds)

    def record(self, failures: Iterable[tuple[Sample, str]]) -> None:
        """Note the samples that could not be read, with the reason. Raises DataFault beyond `max_unreadable`."""
        self.unreadable.update({str(sample[0]): reason for sample, reason in failures})
        if len(self.unreadable) > self.max_unreadable:
            raise DataFault(
                f"dataset.max_unreadable={self.max_unreadable}: {len(self.unreadable)} files could not be read: "
                f"{named(self.unreadable)}. Repair or remove them, or raise the limit."
            )

    def none_readable(self) -> DataFault:
        """What to raise where `max_unreadable` allows for more files than the split has."""
        return DataFault(f"None of the {len(self.samples)} files could be read: {named(self.unreadable)}.")


class FileTrainBatches(_Files, TrainBatches):
    """Batches of the training split, in an order that the seed and the epoch give.

    `load(sample)` returns a uint8 image (3, S, S) and its class, or a uint8 mask (S, S); torch's global generator is
    seeded for it. A sample that cannot be read gives its place to the next readable one of the list, which in a
    list sorted by class is one of the same class, so that batches keep their size and classes their share.
    """

    def __init__(self, data: Data, samples: Sequence[Sample], load: Load, *, seed: int, **placing: Any) -> None:
        super().__init__(data, samples, load, **placing)
        self.seed = seed
        self._plan = Plan()
        self._loader = self.loader(self._plan, persistent=True)
        self._latest: object = None  # the epoch begun last

    def __len__(self) -> int:
        return len(self.samples) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See TrainBatches.epoch. One epoch at a time: beginning one ends the one before."""
        self._latest = current = object()
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(len(self.samples), generator=generator)
        batches = (order[batch * self.batch_size :][: self.batch_size] for batch in range(start, len(self)))
        parts = [self.shard.of_batch(batch) for batch in batches]
        self._plan.batches = _entries(self.samples, parts, self.seed, epoch)
        filled = (
            self._filled(batch, part, epoch) for batch, part in zip(self.loaded(self._loader), parts, strict=True)
        )
        for images, targets, _, mask_shapes, *_ in _on_device(filled, self.device):
            assert self._latest is current, "another epoch was begun meanwhile"
            yield self.normalized(images), targets.view(-1, *mask_shapes[0]).long() if mask_shapes else targets

    def _filled(self, batch: LoadedBatch, part: Tensor, epoch: int) -> LoadedBatch:
        """The batch of the indices `part` with another sample in each empty place."""
        if batch.fault is not None:
            raise batch.fault
        if not batch.failures:
            return batch
        indices = part.tolist()
        self.record((self.samples[indices[place]], reason) for place, reason in batch.failures)
        failed = {place for place, _ in batch.failures}
        readable = iter(batch.unpacked())
        return self._loader.collate_fn(
            [self._next_readable(i, epoch) if place in failed else next(readable) for place, i in enumerate(indices)]
        )

    def _next_readable(self, index: int, epoch: int) -> tuple[Tensor, int | Tensor]:
        """The first sample after `index` that can be read, under the seed of the one whose place it takes."""
        for step in range(1, len(self.samples)):
            sample = self.samples[(index + step) % len(self.samples)]
            loaded = self._loader.dataset[sample, mixed_seed(self.seed, epoch, index)]
            if isinstance(loaded, DataFault):
                raise loaded
            if not isinstance(loaded, str):
                return loaded
            self.record([(sample, loaded)])
        raise self.none_readable()


class FileEvaluationBatches(_Files, EvaluationBatches):
    """Batches of a split in its order; samples that cannot be read are left out.

    `load(sample)` returns a uint8 image (3, h, w) and its class, or a uint8 mask (H, W) at its own resolution. Images
    with masks that differ in size come in batches of their own, so that what is predicted for an image does not depend
    on the others. Raises RuntimeError if nothing of the split can be read.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | Sequence[Label]]]:
        starts = self.shard.of_batches(range(0, len(self.samples), self.batch_size))
        parts = [self.samples[start : start + self.batch_size] for start in starts]
        loader = self.loader([[(sample, 0) for sample in part] for part in parts], persistent=False)
        any_readable = False
        readable = (batch for batch in self._recorded(zip(self.loaded(loader), parts, strict=True)) if batch.sizes)
        for images, targets, sizes, mask_shapes, *_ in _on_device(readable, self.device):
            any_readable = True
            if not mask_shapes:
                yield self.normalized(images), targets
                continue
            masks = [mask.long() for mask in masks_of(targets, mask_shapes)]
            for height, width in dict.fromkeys(sizes):  # a network would see the padding, and judge by its company
                places = [place for place, size in enumerate(sizes) if size == (height, width)]
                alike = images[places][..., :height, :width]
                yield self.normalized(alike), [(masks[place], (height, width)) for place in places]
        if parts and not any_readable:
            raise self.none_readable()

    def _recorded(self, loaded: Iterable[tuple[LoadedBatch, Sequence[Sample]]]) -> Iterator[LoadedBatch]:
        for batch, samples in loaded:
            if batch.fault is not None:
                raise batch.fault
            if batch.failures:
                self.record((samples[place], reason) for place, reason in batch.failures)
            yield batch


def _entries(samples: Sequence[Sample], parts: list[Tensor], seed: int, epoch: int) -> Iterator[list[Entry]]:
    # not a method: the loader keeps this iterator, and with it the object would keep itself and its workers alive
    for part in parts:
        yield [(samples[index], mixed_seed(seed, epoch, index)) for index in part.tolist()]


def _on_device(batches: Iterable[LoadedBatch], device: torch.device) -> Iterator[LoadedBatch]:
    """The batches with their tensors on the device; on CUDA copied by a side stream, one ahead of the one in use."""
    if device.type != "cuda":
        for batch in batches:
            yield batch._replace(images=batch.images.to(device), targets=batch.targets.to(device))
        return
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            tensors = [tensor.to(device, non_blocking=True) for tensor in batch[:2]]
            copied = batch._replace(images=tensors[0], targets=tensors[1]), stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: LoadedBatch, copied: torch.cuda.Event) -> LoadedBatch:
    """The batch, safe to use on the current stream."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(copied)
    for tensor in batch[:2]:
        tensor.record_stream(current)  # its memory was allocated on the side stream
    return batch
