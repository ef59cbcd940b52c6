"""Batches from a split that lies on the device: shuffling, cropping and flipping without a loader process.

All that is random in an epoch is drawn at its start from a generator seeded by (seed, epoch). So a batch depends
on nothing but the seed, the epoch and its place, and a resumed run sees the very same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import IGNORE_INDEX, Data, EvaluationBatches, Label, TrainBatches
from runner.data.seeds import mixed_seed
from runner.data.shards import Shard


class Normalization:
    """(x / 255 - mean) / std for bytes, (x - mean) / std for floats, in a memory format, on a device."""

    def __init__(self, data: Data, *, of_bytes: bool, device: torch.device, channels_last: bool) -> None:
        scale = 1 / 255 if of_bytes else 1.0
        # as one multiplication and one addition
        self.gain = (scale / data.std).view(1, -1, 1, 1).to(device)
        self.shift = (data.mean / data.std).view(1, -1, 1, 1).to(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        return (images * self.gain - self.shift).contiguous(memory_format=self.memory_format)


class _Tensors:
    """Images (N, C, H, W) and targets (N,) or (N, H, W) of one split of `data`, which lie on the device."""

    def __init__(
        self,
        data: Data,
        images: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        device: torch.device,
        channels_last: bool,
        shard: Shard,
    ) -> None:
        self.images = images
        self.targets = targets
        self.num_classes = data.num_classes
        self.batch_size = batch_size
        self.shard = shard
        self.channels_last = channels_last
        self.normalized = Normalization(
            data, of_bytes=images.dtype == torch.uint8, device=device, channels_last=channels_last
        )


class TensorTrainBatches(_Tensors, TrainBatches):
    """Batches of the training split, augmented for the whole batch at once."""

    def __init__(
        self, data: Data, images: Tensor, targets: Tensor, *, seed: int, crop_padding: int, flip: bool, **placing
    ) -> None:
        super().__init__(data, images, targets, **placing)
        self.seed = seed
        self.crop_padding = crop_padding
        self.flip = flip

    def __len__(self) -> int:
        return len(self.targets) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.images.device
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        size = len(self.targets)
        order = torch.randperm(size, generator=generator).to(device)
        offsets = torch.randint(2 * self.crop_padding + 1, (2, size), generator=generator).to(device)
        flips = (torch.rand(size, generator=generator) < 0.5).to(device) & self.flip
        places = torch.arange(size, device=device)
        for batch in range(start, len(self)):
            place = self.shard.of_batch(places[batch * self.batch_size :][: self.batch_size])
            indices = order[place]
            images, targets = self.normalized(self.images[indices]), self.targets[indices]
            if self.crop_padding or self.flip:
                crop = (offsets[:, place], flips[place], self.crop_padding)
                images = crop_and_flip(images, *crop).contiguous(memory_format=self.normalized.memory_format)
                if targets.ndim > 1:
                    targets = crop_and_flip(targets.unsqueeze(1), *crop, fill=IGNORE_INDEX).squeeze(1)
            yield images, targets.long()


class TensorEvaluationBatches(_Tensors, EvaluationBatches):
    """Batches of a split as it lies in memory."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | Sequence[Label]]]:
        for start in self.shard.of_batches(range(0, len(self.targets), self.batch_size)):
            place = slice(start, start + self.batch_size)
            targets = self.targets[place].long()
            labels = targets if targets.ndim == 1 else [(mask, tuple(mask.shape)) for mask in targets]
            yield self.normalized(self.images[place]), labels


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int, *, fill: float = 0) -> Tensor:
    """Crop each image (B, C, H, W), padded by `padding` pixels of `fill`, at its offset (2, B) in 0..2*padding, and
    mirror it where `flips` (B,) says so. Zero is the mean of normalized images. One gather for the whole batch.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, value=fill)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(batch, -1)
    columns = offsets[1, :, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    sample = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
