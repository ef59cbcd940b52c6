"""Batches from a split on the device: shuffled, cropped and flipped without loader workers.

All random numbers of an epoch are drawn at its start, from a generator seeded by (seed, epoch). So a batch depends
only on the seed, the epoch and its index, and a resumed run trains on the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import IGNORE_INDEX, Data, EvaluationBatches, Label, TrainBatches
from runner.data.random_erasing import draw_rectangles, erase
from runner.data.sampling import WHOLE, Shard, mixed_seed

CACHED_NUMEL = 2**17  # numbers that stay in a core's cache from one pass over them to the next


class Normalization:
    """Normalizes images, (x / 255 - mean) / std for bytes and (x - mean) / std for floats, in a memory format."""

    def __init__(self, data: Data, *, of_bytes: bool, device: torch.device, channels_last: bool) -> None:
        scale = 1 / 255 if of_bytes else 1.0
        # as one multiplication and one addition
        self.gain = (scale / data.std).view(1, -1, 1, 1).to(device)
        self.shift = (data.mean / data.std).view(1, -1, 1, 1).to(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu":
            return (images * self.gain - self.shift).contiguous(memory_format=self.memory_format)
        normalized = torch.empty_like(images, dtype=torch.float32, memory_format=self.memory_format)
        source, result, gain, shift = images, normalized, self.gain, self.shift
        if self.memory_format == torch.channels_last:  # as rows of whole pixels: few channels do not fill a vector
            images = images.contiguous(memory_format=self.memory_format)
            source, result = (each.permute(0, 2, 3, 1).flatten(2) for each in (images, normalized))
            gain, shift = (each.flatten().repeat(images.shape[3]) for each in (gain, shift))
        size = max(CACHED_NUMEL // images[0].numel(), 1)
        for few, out in zip(source.split(size), result.split(size), strict=True):
            out.copy_(few).mul_(gain).sub_(shift)
        return normalized


class SplitBatches:
    """What training and evaluation batches share: the batches of a split, normalized on `device`."""

    def __init__(
        self,
        data: Data,
        *,
        of_bytes: bool = True,
        batch_size: int,
        device: torch.device,
        channels_last: bool = False,
        shard: Shard = WHOLE,
    ) -> None:
        self.num_classes = data.num_classes
        self.batch_size = batch_size
        self.device = device
        self.channels_last = channels_last
        self.shard = shard
        self.normalized = Normalization(data, of_bytes=of_bytes, device=device, channels_last=channels_last)


class _TensorBatches(SplitBatches):
    def __init__(self, data: Data, split: str, *, device: torch.device, **placing: Any) -> None:
        tensors = getattr(data, split).on(device)
        self.images, self.targets = tensors.images, tensors.targets
        super().__init__(data, of_bytes=self.images.dtype == torch.uint8, device=device, **placing)


class TensorTrainBatches(_TensorBatches, TrainBatches):
    """Training batches, augmented a whole batch at once."""

    def __init__(
        self,
        data: Data,
        split: str,
        *,
        seed: int,
        crop_padding: int,
        flip: bool,
        random_erasing: float = 0.0,
        **placing: Any,
    ) -> None:
        super().__init__(data, split, **placing)
        self.seed = seed
        self.crop_padding = crop_padding
        self.flip = flip
        self.random_erasing = random_erasing

    def __len__(self) -> int:
        return len(self.targets) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.images.device
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        size = len(self.targets)
        order = torch.randperm(size, generator=generator).to(device)
        offsets = torch.randint(2 * self.crop_padding + 1, (2, size), generator=generator).to(device)
        flips = (torch.rand(size, generator=generator) < 0.5).to(device) & self.flip
        rectangles = None
        if self.random_erasing:
            sides = self.images.shape[2:]
            rectangles = draw_rectangles(size, *sides, self.random_erasing, generator).to(device)
        positions = torch.arange(size, device=device)
        for batch in range(start, len(self)):
            own = self.shard.of_batch(positions[batch * self.batch_size :][: self.batch_size])
            indices = order[own]
            images, targets = self.normalized(self.images[indices]), self.targets[indices]
            if self.crop_padding or self.flip:
                crop = (offsets[:, own], flips[own], self.crop_padding)
                images = crop_and_flip(images, *crop).contiguous(memory_format=self.normalized.memory_format)
                if targets.ndim > 1:
                    targets = crop_and_flip(targets.unsqueeze(1), *crop, fill=IGNORE_INDEX).squeeze(1)
            if rectangles is not None:
                images = erase(images, rectangles[:, own])
            yield images, targets.long()


class TensorEvaluationBatches(_TensorBatches, EvaluationBatches):
    """Batches of a split in order."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | Sequence[Label]]]:
        for start in self.shard.of_batches(range(0, len(self.targets), self.batch_size)):
            own = slice(start, start + self.batch_size)
            targets = self.targets[own].long()
            labels = targets if targets.ndim == 1 else [(mask, tuple(mask.shape)) for mask in targets]
            yield self.normalized(self.images[own]), labels


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int, *, fill: float = 0) -> Tensor:
    """Pad images (B, C, H, W) with `fill`, crop each at its offset (2, B) in 0..2*padding, mirror where `flips` (B,).

    One gather for the whole batch. Zero, the default fill, is the mean of normalized images.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, value=fill)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(batch, -1)
    columns = offsets[1, :, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    sample = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
