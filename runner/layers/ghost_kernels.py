"""Ghost batch norm in two Triton kernels forward and two backward, for CUDA tensors whose channels lie last in memory.

Such a tensor (N, C, *positions) is a matrix of rows x C in memory, and ghost batch k is a band of consecutive rows. The
first kernel of each pair cuts every band into S splits and leaves one partial result for each (band, split, channel).
The second merges the S partial results of its band, in a fixed order, and writes its share of the large tensor. So x is
read twice and y written once; backward, x and dy are read twice and dx written once. That is what batch norm must move.

All arithmetic is in float32. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    x: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x into `out`; return means, unbiased variances and 1 / sqrt(var + eps), each (K, C) in float32."""
    matrix, result = rows_of(x), rows_of(out)
    bands = _Bands(matrix, x, sizes)
    partial = matrix.new_empty((2, bands.count, bands.splits, bands.channels), dtype=torch.float32)
    mean, var, invstd = matrix.new_empty((3, bands.count, bands.channels), dtype=torch.float32).unbind()
    with torch.cuda.device_of(x):
        _moments_of_splits[bands.grid](matrix, partial, *bands.arguments, **bands.constants)
        _normalize_splits[bands.grid](
            matrix, result, partial, mean, var, invstd, weight, bias, *bands.arguments, eps, **bands.constants
        )
    return mean, var, invstd


def gradient(
    x: Tensor, grad_out: Tensor, grad: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Write the gradient at x into `grad`; return those at weight and bias, each (C,) in float32."""
    matrix, result = rows_of(x), rows_of(grad)
    grad_matrix = rows_of(grad_out)
    if grad_matrix is None:  # e.g. expanded from the mean over all positions
        grad_matrix = rows_of(torch.empty_like(x, dtype=grad_out.dtype).copy_(grad_out))
    bands = _Bands(matrix, x, sizes)
    partial = matrix.new_empty((2, bands.count, bands.splits, bands.channels), dtype=torch.float32)
    sums = matrix.new_empty((2, bands.count, bands.channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _gradient_sums_of_splits[bands.grid](
            matrix, grad_matrix, partial, mean, invstd, *bands.arguments, **bands.constants
        )
        _gradient_of_splits[bands.grid](
            matrix, grad_matrix, result, partial, sums, mean, invstd, weight, *bands.arguments, **bands.constants
        )
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


@triton.jit
def _rows_of_band(rows, last_rows):
    """The number of rows of this program's ghost batch, and of a split of it."""
    own_rows = tl.where(tl.program_id(2) == tl.num_programs(2) - 1, last_rows, rows)
    return own_rows, tl.cdiv(own_rows, tl.num_programs(0))


@triton.jit
def _share_of_program(rows, last_rows, channels, BLOCK_CHANNELS: tl.constexpr):
    """What this program reads and writes: the rows `start` to `end` of its ghost batch, and channels with their mask.

    `offset` is the place of the ghost batch's first value.
    """
    own_rows, per_split = _rows_of_band(rows, last_rows)
    start = tl.program_id(0) * per_split
    end = tl.minimum(start + per_split, own_rows)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    offset = tl.program_id(2).to(tl.int64) * rows * channels
    return offset, start, end, channel, channel < channels


@triton.jit
def _block(row, end, channel, channels):
    """Places of the values of these rows and channels, and which of them lie inside the split."""
    inside = (row < end)[:, None] & (channel < channels)[None, :]
    return row.to(tl.int64)[:, None] * channels + channel[None, :], inside


@triton.jit
def _splits_from(first, own_rows, per_split, channel, channels, SPLIT_BLOCK: tl.constexpr):
    """SPLIT_BLOCK splits of this ghost batch from `first`: their rows, places of their partial results, a mask."""
    split = first + tl.arange(0, SPLIT_BLOCK)
    counts = tl.minimum(tl.maximum(own_rows - split * per_split, 0), per_split).to(tl.float32)
    inside = (split < tl.num_programs(0))[:, None] & (channel < channels)[None, :]
    place = (tl.program_id(2) * tl.num_programs(0) + split)[:, None] * channels + channel[None, :]
    return counts[:, None], place, inside


@triton.jit(do_not_specialize=["rows", "last_rows"])
def _moments_of_splits(
    x, partial, rows, last_rows, channels,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """The mean, and the sum of squared deviations from it, of each channel in one split of a ghost batch."""
    offset, start, end, channel, is_channel = _share_of_program(rows, last_rows, channels, BLOCK_CHANNELS)
    split, band = tl.program_id(0), tl.program_id(2)
    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    means = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)  # of each lane's rows, by Welford's rule
    squares = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    count = 0.0
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        count += 1.0
        delta = tl.where(inside, value - means, 0.0)
        means += delta * (1.0 / count)
        squares += delta * (value - means)
    counts = tl.cdiv(tl.maximum(end - start - lane, 0), BLOCK_ROWS).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, 0) / tl.maximum(end - start, 1).to(tl.float32)
    deviation = means - mean[None, :]
    squares_of_split = tl.sum(squares + counts * deviation * deviation, 0)
    place = (band * tl.num_programs(0) + split) * channels + channel
    of_one_kind = tl.num_programs(2) * tl.num_programs(0) * channels
    tl.store(partial + place, mean, mask=is_channel)
    tl.store(partial + of_one_kind + place, squares_of_split, mask=is_channel)


@triton.jit(do_not_specialize=["rows", "last_rows"])
def _normalize_splits(
    x, out, partial, mean_out, var_out, invstd_out, weight, bias, rows, last_rows, channels, eps,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge a ghost batch's moments and normalize one of its splits; the first split writes the statistics."""
    offset, start, end, channel, is_channel = _share_of_program(rows, last_rows, channels, BLOCK_CHANNELS)
    own_rows, per_split = _rows_of_band(rows, last_rows)
    split, band = tl.program_id(0), tl.program_id(2)

    values = own_rows.to(tl.float32)
    of_one_kind = tl.num_programs(2) * tl.num_programs(0) * channels
    mean = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for first in range(0, tl.num_programs(0), SPLIT_BLOCK):
        counts, place, inside = _splits_from(first, own_rows, per_split, channel, channels, SPLIT_BLOCK)
        mean += tl.sum(tl.load(partial + place, mask=inside, other=0.0) * counts, 0)
    mean /= values
    square = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for first in range(0, tl.num_programs(0), SPLIT_BLOCK):
        counts, place, inside = _splits_from(first, own_rows, per_split, channel, channels, SPLIT_BLOCK)
        deviation = tl.load(partial + place, mask=inside, other=0.0) - mean[None, :]
        squares = tl.load(partial + of_one_kind + place, mask=inside, other=0.0)
        square += tl.sum(squares + counts * deviation * deviation, 0)
    invstd = 1.0 / tl.sqrt(square / values + eps)
    if split == 0:
        place = band * channels + channel
        tl.store(mean_out + place, mean, mask=is_channel)
        tl.store(var_out + place, square / (values - 1.0), mask=is_channel)
        tl.store(invstd_out + place, invstd, mask=is_channel)
    scale = invstd
    if weight is not None:
        scale *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    shift = -mean * scale
    if bias is not None:
        shift += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)

    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    out += offset
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, (value * scale[None, :] + shift[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "last_rows"])
def _gradient_sums_of_splits(
    x, grad_out, partial, mean_in, invstd_in, rows, last_rows, channels,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of dy x_hat and of dy of each channel in one split of a ghost batch."""
    offset, start, end, channel, is_channel = _share_of_program(rows, last_rows, channels, BLOCK_CHANNELS)
    split, band = tl.program_id(0), tl.program_id(2)
    mean = tl.load(mean_in + band * channels + channel, mask=is_channel, other=0.0)
    invstd = tl.load(invstd_in + band * channels + channel, mask=is_channel, other=0.0)
    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    grad_out += offset
    products = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
        products += slope * (value - mean[None, :])
        sums += slope
    place = (band * tl.num_programs(0) + split) * channels + channel
    of_one_kind = tl.num_programs(2) * tl.num_programs(0) * channels
    tl.store(partial + place, tl.sum(products, 0) * invstd, mask=is_channel)
    tl.store(partial + of_one_kind + place, tl.sum(sums, 0), mask=is_channel)


@triton.jit(do_not_specialize=["rows", "last_rows"])
def _gradient_of_splits(
    x, grad_out, grad, partial, sums_out, mean_in, invstd_in, weight, rows, last_rows, channels,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = weight invstd (dy - mean(dy) - x_hat mean(dy x_hat)) in one split; the first split writes the sums."""
    offset, start, end, channel, is_channel = _share_of_program(rows, last_rows, channels, BLOCK_CHANNELS)
    own_rows, per_split = _rows_of_band(rows, last_rows)
    split, band = tl.program_id(0), tl.program_id(2)

    of_one_kind = tl.num_programs(2) * tl.num_programs(0) * channels
    sum_products = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    sum_slopes = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for first in range(0, tl.num_programs(0), SPLIT_BLOCK):
        _, place, inside = _splits_from(first, own_rows, per_split, channel, channels, SPLIT_BLOCK)
        sum_products += tl.sum(tl.load(partial + place, mask=inside, other=0.0), 0)
        sum_slopes += tl.sum(tl.load(partial + of_one_kind + place, mask=inside, other=0.0), 0)
    if split == 0:
        place = band * channels + channel
        tl.store(sums_out + place, sum_products, mask=is_channel)
        tl.store(sums_out + tl.num_programs(2) * channels + place, sum_slopes, mask=is_channel)
    mean = tl.load(mean_in + band * channels + channel, mask=is_channel, other=0.0)
    invstd = tl.load(invstd_in + band * channels + channel, mask=is_channel, other=0.0)
    values = own_rows.to(tl.float32)
    mean_slope = sum_slopes / values
    factor = invstd * sum_products / values
    scale = invstd
    if weight is not None:
        scale *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)

    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    grad_out += offset
    grad += offset
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
        result = scale[None, :] * (slope - mean_slope[None, :] - (value - mean[None, :]) * factor[None, :])
        tl.store(grad + place, result.to(grad.dtype.element_ty), mask=inside)
