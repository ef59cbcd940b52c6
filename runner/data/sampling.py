"""Which samples are used where: validation splits, the shards of ranks, and the seeds of random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def mixed_seed(*numbers: int) -> int:
    """A 32-bit hash of the numbers, for torch's CPU generator: near numbers give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest())


@dataclass(frozen=True)
class Shard:
    """The samples that rank `rank` of `world_size` reads of a batch of `accumulation_steps` micro-batches.

    A training batch is split into micro-batches first, and each of them over the ranks: so the union of the ranks'
    micro-batches is that of a single process. In an evaluation each rank takes every `world_size`-th batch.
    """

    rank: int = 0
    world_size: int = 1
    accumulation_steps: int = 1

    def positions(self, batch_size: int) -> Tensor:
        """The positions of this rank's samples in a batch, int64.

        >>> from runner.data.sampling import Shard
        >>> Shard(rank=1, world_size=2, accumulation_steps=2).positions(8)
        tensor([2, 3, 6, 7])
        """
        return torch.arange(batch_size).view(self.accumulation_steps, self.world_size, -1)[:, self.rank].flatten()

    def of_batch(self, indices: Tensor) -> Tensor:
        """This rank's part of a batch's indices (B,)."""
        return indices if self.world_size == 1 else indices[self.positions(len(indices)).to(indices.device)]

    def of_batches(self, batches: Iterable[T]) -> Iterator[T]:
        """This rank's batches of an evaluation."""
        return islice(batches, self.rank, None, self.world_size)


WHOLE = Shard()


def split_validation(
    train: Sequence[T], targets: Tensor, test: Sequence[T], validation: float | str
) -> tuple[list[T], Sequence[T], str]:
    """Training samples, validation samples, and the source of the latter: see make_data."""
    if validation == "test":
        return list(train), test, "test"
    left, chosen = set_apart(targets, float(validation))
    return [train[index] for index in left.tolist()], [train[index] for index in chosen.tolist()], "train"


def set_apart(targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the training samples and of the `share` for validation; see stratified_share.

    Raises ValueError if that share has no sample, or all of a class.
    """
    chosen = stratified_share(targets, share)
    if not len(chosen):
        raise ValueError(
            f"dataset.validation={share}: that share of the training images of a class is none, in every class. Choose "
            "a larger share, or dataset.validation=test."
        )
    is_left = torch.ones(len(targets), dtype=torch.bool)
    is_left[chosen] = False
    left = is_left.nonzero().squeeze(1)
    if lost := len(targets.unique()) - len(targets[left].unique()):
        of_classes = f" of {lost} class{'es' if lost > 1 else ''}" if len(left) else ""
        raise ValueError(
            f"dataset.validation={share}: that share takes all training images{of_classes}, and leaves none to train "
            "on. Choose a smaller share, or dataset.validation=test."
        )
    return left, chosen


def stratified_share(targets: Tensor, share: float) -> Tensor:
    """Sorted indices of a `share` of the samples of each class, rounded to whole samples.

    The same on every machine and for every seed of a run.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(targets), generator=generator)
    # a stable sort of the shuffled samples by class; then take the first ones of each
    by_class = order[targets[order].argsort(stable=True)]
    counts = targets.bincount()
    starts = counts.cumsum(0) - counts
    chosen = [
        by_class[start : start + round(share * count)]
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
    ]
    return torch.cat(chosen).sort().values
