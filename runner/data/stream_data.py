"""Data sets that are read as a stream, from files that may lie elsewhere: no sample is got by its number.

An epoch is shuffled through a buffer. A batch depends on the seed, the epoch, its index, the number of processes and
that of workers: with the same numbers a resumed run goes on with the same batches, for which it reads what came before
them in the epoch again. Each process and worker reads files of its own, and begins anew where its files end before the
others': so an epoch may show a few samples twice and leave others out. An evaluation reads each sample once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from runner.data.batches import SplitBatches
from runner.data.dataset import Data, DataFault, EvaluationBatches, TrainBatches, check_batch_size
from runner.data.file_batches import on_device, record_unreadable
from runner.data.file_data import TIMEOUT_SECONDS
from runner.data.file_loader import Collate, LoadedBatch, Reader, available_workers, leave_signals_to_main
from runner.data.image_reading import ImageReader
from runner.data.loader_faults import POLL_SECONDS, batches_of
from runner.data.sampling import mixed_seed


@dataclass(frozen=True)
class Stream:
    """A split: the samples of `dataset`, an iterable data set of Hugging Face whose images are not decoded.

    `part` is the interval of the hash of an image, in [0, 1), to which its samples belong.
    """

    dataset: Any
    length: int  # about, where it is a part
    part: tuple[float, float] = (0.0, 1.0)

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class LoadEncodedImage:
    """Decodes and transforms an image, {"bytes", "path"}."""

    transform: Callable[..., Tensor]
    read: ImageReader

    def __call__(self, sample: tuple[dict[str, Any], int]) -> tuple[Tensor, int]:
        encoded, target = sample
        return self.transform(self.read(encoded["bytes"] or encoded["path"])), target


@dataclass(frozen=True, kw_only=True)
class StreamData(Data):
    """A data set of streams, with images and classes in two columns."""

    train: Stream
    validation: Stream
    test: Stream
    columns: tuple[str, str]
    load_train: LoadEncodedImage
    load_evaluation: LoadEncodedImage
    shuffle_buffer: int = 10_000
    num_workers: int | None = None
    max_unreadable: int = 0
    timeout_seconds: float = TIMEOUT_SECONDS

    def train_batches(self, *, batch_size: int, seed: int, **placing: Any) -> StreamTrainBatches:
        check_batch_size(batch_size, self)
        return StreamTrainBatches(self, "train", seed=seed, batch_size=batch_size, **placing)

    def evaluation_batches(self, split: str, *, batch_size: int, **placing: Any) -> StreamEvaluationBatches:
        return StreamEvaluationBatches(self, split, batch_size=batch_size, **placing)


@dataclass(frozen=True)
class StreamReader(IterableDataset):
    """The batches of a process: in a worker, every one whose number is the worker's, modulo the number of workers.

    `seed` is None in an evaluation, which ends with the samples; training ends after batch `stop`, from `start` on.
    """

    dataset: Any
    part: tuple[float, float]
    columns: tuple[str, str]
    load: LoadEncodedImage
    collate: Collate
    batch_size: int
    max_failures: int
    rank: int = 0
    seed: int | None = None
    epoch: int = 0
    start: int = 0
    stop: int = 0
    shuffle_buffer: int = 1

    def __iter__(self) -> Iterator[LoadedBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        samples = self._samples()
        if self.seed is None:
            while samples_of_batch := list(islice(samples, self.batch_size)):
                yield self._batch(iter(samples_of_batch), len(samples_of_batch), 0)
            return
        for number in range(first, self.stop, step):
            if number < self.start:
                all(islice(samples, self.batch_size))
            else:
                yield self._batch(samples, self.batch_size, mixed_seed(self.seed, self.epoch, self.rank, number))

    def _samples(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Encoded images with their classes; in training without end."""
        image, label = self.columns
        for repetition in count() if self.seed is not None else range(1):
            rows, is_empty = self.dataset, True
            if self.seed is not None:  # the same order of files in all processes, each of which reads its own
                order = mixed_seed(self.seed, self.epoch, repetition)
                rows = rows.shuffle(seed=order, buffer_size=self.shuffle_buffer)
            for row in rows:
                if self.part[0] <= _hash(row[image]) < self.part[1]:
                    is_empty = False
                    yield row[image], int(row[label])
            if is_empty:
                return

    def _batch(self, samples: Iterator[tuple[dict[str, Any], int]], size: int, seed: int) -> LoadedBatch:
        """A batch of readable samples; in training one that cannot be read is replaced by the next."""
        read, loaded, failures = Reader(self.load), [], []
        for sample in samples:
            result = read[sample, mixed_seed(seed, len(loaded))]
            if isinstance(result, str):
                failures.append((_name(sample[0]), result))
                if self.seed is None:
                    size -= 1
            else:
                loaded.append(result)
            if len(loaded) == size or len(failures) > self.max_failures:
                break
        return self.collate(loaded)._replace(failures=failures)


class _StreamBatches(SplitBatches):
    def __init__(self, data: StreamData, split: str, **placing: Any) -> None:
        super().__init__(data, **placing)
        self.data = data
        self.stream: Stream = getattr(data, split)
        self.load = data.load_train if isinstance(self, TrainBatches) else data.load_evaluation

    def loaded(self, batch_size: int, start: int = 0, **training: int) -> Iterator[LoadedBatch]:
        """The batches of this process, on the device; in training from number `start` on."""
        from datasets.distributed import split_dataset_by_node

        dataset = self.stream.dataset
        if self.shard.world_size > 1:
            dataset = split_dataset_by_node(dataset, self.shard.rank, self.shard.world_size)
        num_workers = available_workers() if self.data.num_workers is None else self.data.num_workers
        num_workers = min(num_workers, dataset.num_shards)  # a worker reads whole files
        extra = start % max(num_workers, 1)  # the loader begins with the first worker, whose files are others
        fill = tuple((self.data.mean * 255).round().int().tolist())
        reader = StreamReader(
            dataset=dataset,
            part=self.stream.part,
            columns=self.data.columns,
            load=self.load,
            collate=Collate(fill),
            batch_size=batch_size,
            max_failures=self.data.max_unreadable,
            rank=self.shard.rank,
            start=start - extra,
            **training,
        )
        loader = DataLoader(
            reader,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            worker_init_fn=leave_signals_to_main,
            pin_memory=self.device.type == "cuda",
            timeout=POLL_SECONDS if num_workers > 0 else 0,
            generator=torch.Generator(),
        )
        batches = self._recorded(batches_of(loader, self.data.timeout_seconds))
        return on_device(islice(batches, extra, None), self.device)

    def _recorded(self, batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
        for batch in batches:
            if batch.fault is not None:
                raise batch.fault
            record_unreadable(self.data, dict(batch.failures))
            if batch.images is not None:
                yield batch


class StreamTrainBatches(_StreamBatches, TrainBatches):
    """Training batches through a buffer in which samples are shuffled."""

    def __init__(self, data: StreamData, split: str, *, seed: int, **placing: Any) -> None:
        super().__init__(data, split, **placing)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        share = self.batch_size // self.shard.world_size
        where = {"seed": self.seed, "epoch": epoch, "start": start, "stop": len(self)}
        batches = self.loaded(share, **where, shuffle_buffer=self.data.shuffle_buffer)
        missing = len(self) - start
        for batch in batches:
            missing -= 1
            yield self.normalized(batch.images), batch.targets
        if missing:
            raise DataFault(f"{missing} of {len(self)} batches are missing: no image of the files can be read.")


class StreamEvaluationBatches(_StreamBatches, EvaluationBatches):
    """Batches of a split in the order of its files, without unreadable samples."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loaded(self.batch_size):
            yield self.normalized(batch.images), batch.targets


def _unchanged(batch: LoadedBatch) -> LoadedBatch:
    return batch


def _hash(image: dict[str, Any]) -> float:
    """A number in [0, 1) that depends on the file's content, or on its name where that is not read yet."""
    return zlib.crc32(image["bytes"] or _name(image).encode()) / 2**32


def _name(image: dict[str, Any]) -> str:
    """The last two parts of its path."""
    return "/".join((image["path"] or "an image without a name").split("/")[-2:])


def set_apart_stream(stream: Stream, share: float) -> tuple[Stream, Stream]:
    """The stream's samples without a `share` of them, chosen by the hashes of their images, and that share."""
    length = round(share * stream.length)
    return replace(stream, length=stream.length - length, part=(share, 1.0)), replace(
        stream, length=length, part=(0.0, share)
    )
