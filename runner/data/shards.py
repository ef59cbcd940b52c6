"""Which samples each of several processes reads, so that together they read what one would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """The part of rank number `rank` of `world_size`, where a batch is cut into `parts` micro-batches.

    A training batch is cut into micro-batches first, and each of these into one piece a rank: so that the ranks'
    micro-batches, put together, are those of a single process. Of an evaluation each rank takes every
    `world_size`-th batch, so that every sample is seen once.
    """

    rank: int = 0
    world_size: int = 1
    parts: int = 1

    def positions(self, batch_size: int) -> Tensor:
        """The places in a batch of `batch_size` of the samples that are this rank's, int64.

        >>> from runner.data.shards import Shard
        >>> Shard(rank=1, world_size=2, parts=2).positions(8)
        tensor([2, 3, 6, 7])
        """
        return torch.arange(batch_size).view(self.parts, self.world_size, -1)[:, self.rank].flatten()

    def of_batch(self, indices: Tensor) -> Tensor:
        """This rank's of the indices of a batch's samples, (B,)."""
        return indices if self.world_size == 1 else indices[self.positions(len(indices)).to(indices.device)]

    def of_batches(self, batches: Iterable[T]) -> Iterator[T]:
        """This rank's of the batches of an evaluation."""
        return islice(batches, self.rank, None, self.world_size)


WHOLE = Shard()
