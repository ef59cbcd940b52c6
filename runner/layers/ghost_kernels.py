"""Ghost batch norm in two Triton kernels forward and two backward, for CUDA tensors whose channels lie last in memory.

Such a tensor (N, C, *positions) is a matrix of rows x C in memory, and ghost batch k is a band of consecutive rows. The
first kernel of each pair cuts every band into S splits and leaves one partial result for each (band, split, channel).
The second merges the S partial results of its band, in a fixed order, and writes its share of the large tensor. So x is
read twice and y written once; backward, x and dy are read twice and dx written once. That is what batch norm must move.

A ReLU after it moves nothing more: the backward kernels compute its mask again from x. With a residual in between they
take the mask from y, which is read once, and write the gradient at the residual, which the second reads in place of dy.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from runner.layers.ghost_triton import (
    gradient_of_splits,
    gradient_sums_of_splits,
    moments_of_splits,
    normalize_splits,
)
from runner.layers.triton_kernels import DTYPES, LAUNCH_OPTIONS

BLOCK_ROWS = 32
BLOCK_CHANNELS = 64  # 128 bytes of a row in half precision
SPLIT_BLOCK = 16  # partial results that are merged at once
MOST_SPLITS = 8 * SPLIT_BLOCK
PROGRAMS_PER_PROCESSOR = 8


def can_normalize(x: Tensor) -> bool:
    """Whether the kernels support `x`: on a GPU, of a dtype in `DTYPES`, channels last and contiguous."""
    return x.is_cuda and x.dtype in DTYPES and x.numel() > 0 and rows_of(x) is not None


def rows_of(x: Tensor) -> Tensor | None:
    """x (N, C, *positions) as its matrix (rows, C), sharing memory; None if it does not lie so in memory."""
    matrix = x.movedim(1, -1)
    return matrix.reshape(-1, x.shape[1]) if matrix.is_contiguous() else None


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sizes: list[int],
    eps: float,
    out: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x into `out`, with the residual and the ReLU if given.

    Returns means, unbiased variances and 1 / sqrt(var + eps), each (K, C) in float32.
    """
    matrix, result = rows_of(x), rows_of(out)
    added = None if residual is None else rows_of(residual)
    bands = _Bands(matrix, x, sizes)
    partial = matrix.new_empty((2, bands.count, bands.splits, bands.channels), dtype=torch.float32)
    mean, var, invstd = matrix.new_empty((3, bands.count, bands.channels), dtype=torch.float32).unbind()
    with torch.cuda.device_of(x):
        moments_of_splits[bands.grid](matrix, partial, *bands.arguments, **bands.constants)
        normalize_splits[bands.grid](
            matrix, result, added, partial, mean, var, invstd, weight, bias, *bands.arguments, eps,
            RELU=relu, **bands.constants,
        )  # fmt: skip
    return mean, var, invstd


def gradient(
    x: Tensor,
    grad_out: Tensor,
    grad: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sizes: list[int],
    rectified: Tensor | None = None,
    grad_residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Write the gradient at x into `grad`, that at the residual into `grad_residual`.

    `rectified` is the output of the ReLU, if there is one. All have the strides of x. Returns the gradients at weight
    and bias, each (C,) in float32.
    """
    matrix, slopes, result = rows_of(x), rows_of(grad_out), rows_of(grad)
    outputs, masked = (None, None) if grad_residual is None else (rows_of(rectified), rows_of(grad_residual))
    bands = _Bands(matrix, x, sizes)
    partial = matrix.new_empty((2, bands.count, bands.splits, bands.channels), dtype=torch.float32)
    sums = matrix.new_empty((2, bands.count, bands.channels), dtype=torch.float32)
    relu = rectified is not None and masked is None
    with torch.cuda.device_of(x):
        gradient_sums_of_splits[bands.grid](
            matrix, slopes, outputs, masked, partial, mean, invstd, weight, bias, *bands.arguments,
            RELU=relu, **bands.constants,
        )  # fmt: skip
        gradient_of_splits[bands.grid](
            matrix, slopes if masked is None else masked, result, partial, sums, mean, invstd, weight, bias,
            *bands.arguments, RELU=relu, **bands.constants,
        )  # fmt: skip
    return sums.sum(1).unbind()


class _Bands:
    """The distribution of the rows of x over programs: a grid (splits, blocks of channels, ghost batches)."""

    def __init__(self, matrix: Tensor, x: Tensor, sizes: list[int]) -> None:
        self.channels = matrix.shape[1]
        positions = x.shape[2:].numel()
        rows, last_rows = sizes[0] * positions, sizes[-1] * positions
        self.count = len(sizes)
        block_channels = min(BLOCK_CHANNELS, triton.next_power_of_2(self.channels))
        blocks = triton.cdiv(self.channels, block_channels)
        longest = max(rows, last_rows)
        wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * _num_processors(matrix.device), self.count * blocks)
        self.splits = min(wanted, MOST_SPLITS, triton.cdiv(longest, 4 * BLOCK_ROWS))
        self.grid = (self.splits, blocks, self.count)
        self.arguments = (rows, last_rows, self.channels)
        block_sizes = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_CHANNELS": block_channels, "SPLIT_BLOCK": SPLIT_BLOCK}
        self.constants = {**block_sizes, **LAUNCH_OPTIONS}


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
