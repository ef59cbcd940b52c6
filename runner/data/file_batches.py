"""Batches from image files: read and augmented by loader workers, normalized on the device.

Each sample is augmented under its own seed, made of (seed, epoch, index). So a batch depends only on the seed, the
epoch and its index: not on the number of workers, nor on where an epoch began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runner.data.batches import SplitBatches
from runner.data.dataset import Data, DataFault, EvaluationBatches, Label, TrainBatches
from runner.data.file_loader import (
    EpochSampler,
    LoadedBatch,
    Sample,
    SeededSample,
    available_workers,
    make_loader,
    masks_of,
)
from runner.data.image_check import with_reason
from runner.data.loader_faults import batches_of
from runner.data.sampling import mixed_seed

if TYPE_CHECKING:
    from runner.data.file_data import FileData


class _FileBatches(SplitBatches):
    """The samples of a split, their loader, and the unreadable ones."""

    def __init__(self, data: FileData, split: str, **placing: Any) -> None:
        super().__init__(data, **placing)
        self.data = data
        self.samples: Sequence[Sample] = getattr(data, split)
        self.load = data.load_train if isinstance(self, TrainBatches) else data.load_evaluation
        self.num_workers = available_workers() if data.num_workers is None else data.num_workers
        self.unreadable = data.unreadable
        self.fill = (data.mean * 255).round().int().tolist()

    def loader(self, batches: Iterable[list[SeededSample]], *, persistent: bool) -> DataLoader:
        """See make_loader."""
        return make_loader(
            self.load,
            batches,
            fill=self.fill,
            num_workers=self.num_workers,
            persistent=persistent,
            pin_memory=self.device.type == "cuda",
        )

    def loaded(self, loader: DataLoader) -> Iterator[LoadedBatch]:
        """See batches_of."""
        return batches_of(loader, self.data.timeout_seconds)

    def finished(self, batch: LoadedBatch, samples: Sequence[SeededSample]) -> LoadedBatch:
        """The batch of `samples`, after what is left to do in this process, if anything is."""
        finish = getattr(self.load, "finish", None)
        return batch if finish is None else finish(batch, samples, self.device)

    def record(self, failures: Iterable[tuple[Sample, str]]) -> None:
        """See record_unreadable."""
        record_unreadable(self.data, {str(sample[0]): reason for sample, reason in failures})

    def none_readable(self) -> DataFault:
        """The error if `max_unreadable` allows for more files than the split has."""
        first = with_reason(self.unreadable)
        return DataFault(f"None of the {len(self.samples)} files could be read: {first}.")


class FileTrainBatches(_FileBatches, TrainBatches):
    """Training batches, in an order given by the seed and the epoch.

    An unreadable sample is replaced by the next readable one of the split. Splits are sorted by class, so the batch
    size and the share of each class stay.
    """

    def __init__(self, data: FileData, *, seed: int, **placing: Any) -> None:
        super().__init__(data, "train", **placing)
        self.seed = seed
        self._sampler = EpochSampler()
        self._loader = self.loader(self._sampler, persistent=True)
        self._current_epoch: object = None

    def __len__(self) -> int:
        return len(self.samples) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See TrainBatches.epoch. Starting an epoch ends the one before."""
        self._current_epoch = current = object()
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(len(self.samples), generator=generator)
        batches = (order[batch * self.batch_size :][: self.batch_size] for batch in range(start, len(self)))
        own = [self.shard.of_batch(batch) for batch in batches]
        self._sampler.batches = _seeded_samples(self.samples, own, self.seed, epoch)
        loaded = zip(self.loaded(self._loader), own, strict=True)
        filled = (self._filled(batch, indices.tolist(), epoch) for batch, indices in loaded)
        seeded = _seeded_samples(self.samples, own, self.seed, epoch)
        filled = (self.finished(batch, samples) for batch, samples in zip(filled, seeded, strict=True))
        for images, targets, _, mask_shapes, *_ in on_device(filled, self.device):
            assert self._current_epoch is current, "another epoch was begun meanwhile"
            yield self.normalized(images), targets.view(-1, *mask_shapes[0]).long() if mask_shapes else targets

    def _filled(self, batch: LoadedBatch, indices: list[int], epoch: int) -> LoadedBatch:
        """The batch with another sample in the place of each unreadable one."""
        if batch.fault is not None:
            raise batch.fault
        if not batch.failures:
            return batch
        self.record((self.samples[indices[place]], reason) for place, reason in batch.failures)
        failed = {place for place, _ in batch.failures}
        readable = iter(batch.unpacked())
        return self._loader.collate_fn(
            [self._next_readable(i, epoch) if place in failed else next(readable) for place, i in enumerate(indices)]
        )

    def _next_readable(self, index: int, epoch: int) -> tuple[Tensor, int | Tensor]:
        """The first readable sample after `index`, under the seed of the one that it replaces."""
        for step in range(1, len(self.samples)):
            sample = self.samples[(index + step) % len(self.samples)]
            loaded = self._loader.dataset[sample, mixed_seed(self.seed, epoch, index)]
            if isinstance(loaded, DataFault):
                raise loaded
            if not isinstance(loaded, str):
                return loaded
            self.record([(sample, loaded)])
        raise self.none_readable()


class FileEvaluationBatches(_FileBatches, EvaluationBatches):
    """Batches of a split in order, without unreadable samples.

    For segmentation, images of different sizes come in separate batches, so that a prediction does not depend on
    padding. Raises DataFault if no sample of the split can be read.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | Sequence[Label]]]:
        starts = self.shard.of_batches(range(0, len(self.samples), self.batch_size))
        parts = [self.samples[start : start + self.batch_size] for start in starts]
        loader = self.loader([[(sample, 0) for sample in part] for part in parts], persistent=False)
        any_readable = False
        readable = (batch for batch in self._recorded(zip(self.loaded(loader), parts, strict=True)) if batch.sizes)
        for images, targets, sizes, mask_shapes, *_ in on_device(readable, self.device):
            any_readable = True
            if not mask_shapes:
                yield self.normalized(images), targets
                continue
            masks = [mask.long() for mask in masks_of(targets, mask_shapes)]
            for height, width in dict.fromkeys(sizes):  # without padding
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
            unread = {place for place, _ in batch.failures}
            kept = [(sample, 0) for place, sample in enumerate(samples) if place not in unread]
            yield self.finished(batch, kept) if kept else batch


def record_unreadable(data: Data, failures: Mapping[str, str]) -> None:
    """Record files that cannot be read, with the reasons. Raises DataFault beyond `max_unreadable` of the data set."""
    data.unreadable.update(failures)
    if len(data.unreadable) > data.max_unreadable:
        raise DataFault(
            f"dataset.max_unreadable={data.max_unreadable}: {len(data.unreadable)} files could not be read: "
            f"{with_reason(data.unreadable)}. Repair or remove them, or raise the limit."
        )


def _seeded_samples(
    samples: Sequence[Sample], batches: list[Tensor], seed: int, epoch: int
) -> Iterator[list[SeededSample]]:
    # not a method: the loader keeps this iterator, which would keep the object and its workers alive
    for indices in batches:
        yield [(samples[index], mixed_seed(seed, epoch, index)) for index in indices.tolist()]


def on_device(batches: Iterable[LoadedBatch], device: torch.device) -> Iterator[LoadedBatch]:
    """Move batches to the device; on CUDA with a side stream, one batch ahead."""
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
    """Make the batch safe to use on the current stream."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(copied)
    for tensor in batch[:2]:
        tensor.record_stream(current)  # its memory was allocated on the side stream
    return batch
