"""The Triton kernels that `ghost_kernels` launches on a grid (splits of a ghost batch, channel blocks, ghost batches).

Tensors are matrices of rows x channels. All arithmetic is in float32. No atomics: the same input gives the same bits.
"""

import triton
import triton.language as tl


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


@triton.jit
def _scale_and_shift(mean, invstd, weight, bias, channel, is_channel):
    """The numbers of each channel with y = x scale + shift, before the residual."""
    scale = invstd
    if weight is not None:
        scale *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    shift = -mean * scale
    if bias is not None:
        shift += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit(do_not_specialize=["rows", "last_rows"])
def moments_of_splits(
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
def normalize_splits(
    x, out, residual, partial, mean_out, var_out, invstd_out, weight, bias, rows, last_rows, channels, eps,
    RELU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
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
    scale, shift = _scale_and_shift(mean, invstd, weight, bias, channel, is_channel)

    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    out += offset
    if residual is not None:
        residual += offset
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        if residual is not None:
            value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # NaN stays NaN
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "last_rows"])
def gradient_sums_of_splits(
    x, grad_out, out, grad_residual, partial, mean_in, invstd_in, weight, bias, rows, last_rows, channels,
    RELU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of dy x_hat and of dy of each channel in one split of a ghost batch, dy taken before the ReLU.

    With `grad_residual`, the mask comes from `out`, and dy is written there.
    """
    offset, start, end, channel, is_channel = _share_of_program(rows, last_rows, channels, BLOCK_CHANNELS)
    split, band = tl.program_id(0), tl.program_id(2)
    mean = tl.load(mean_in + band * channels + channel, mask=is_channel, other=0.0)
    invstd = tl.load(invstd_in + band * channels + channel, mask=is_channel, other=0.0)
    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    grad_out += offset
    if RELU:
        scale, shift = _scale_and_shift(mean, invstd, weight, bias, channel, is_channel)
    if grad_residual is not None:
        out += offset
        grad_residual += offset
    products = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            slope = tl.where(value * scale[None, :] + shift[None, :] <= 0, 0.0, slope)
        if grad_residual is not None:
            slope = tl.where(tl.load(out + place, mask=inside, other=0.0).to(tl.float32) <= 0, 0.0, slope)
            tl.store(grad_residual + place, slope.to(grad_residual.dtype.element_ty), mask=inside)
        products += slope * (value - mean[None, :])
        sums += slope
    place = (band * tl.num_programs(0) + split) * channels + channel
    of_one_kind = tl.num_programs(2) * tl.num_programs(0) * channels
    tl.store(partial + place, tl.sum(products, 0) * invstd, mask=is_channel)
    tl.store(partial + of_one_kind + place, tl.sum(sums, 0), mask=is_channel)


@triton.jit(do_not_specialize=["rows", "last_rows"])
def gradient_of_splits(
    x, grad_out, grad, partial, sums_out, mean_in, invstd_in, weight, bias, rows, last_rows, channels,
    RELU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
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
    scale, shift = _scale_and_shift(mean, invstd, weight, bias, channel, is_channel)

    lane = tl.arange(0, BLOCK_ROWS)
    x += offset
    grad_out += offset
    grad += offset
    for row in range(start, end, BLOCK_ROWS):
        place, inside = _block(row + lane, end, channel, channels)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            slope = tl.where(value * scale[None, :] + shift[None, :] <= 0, 0.0, slope)
        result = scale[None, :] * (slope - mean_slope[None, :] - (value - mean[None, :]) * factor[None, :])
        tl.store(grad + place, result.to(grad.dtype.element_ty), mask=inside)
