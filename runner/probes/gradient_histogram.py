"""The distribution of a layer's gradient (Bjorck et al. 2018, arXiv 1806.02375, figure 2).

At initialization the gradients of a network without batch norm are larger and have heavier tails than with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.gradients import batch_loss, listed
from runner.probes.layers import pick
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement


def gradient_histogram(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    layer: int | float | str = 0.5,
    num_bins: int = 101,
    tail_share: float = 0.01,
) -> Measurement:
    """The elements g of dL/dW for the weight W of one layer, without clipping, pooled over the batches.

    `layer`: as `pick` takes it; the default is the convolution at half depth (the paper: layer 55 of 110).
    `tail_share`: the share of the elements, those of largest |g|, from which the tail index is estimated.
    Norms use the batch's statistics, without dropout and stochastic depth.

    Arrays: `counts` (num_bins,) in equal bins between `edges` (num_bins + 1,), from -max |g| to max |g|;
    `tail_value` (Q,), the |g| that a share `tail_probability` (Q,) of the elements reaches or exceeds.
    Numbers, of the finite elements, N in all and in float64:

        std, max_abs, range    the deviation, max |g|, max g - min g
        p99_9                  the 99.9th percentile of |g|
        excess_kurtosis        m4 / m2^2 - 3 of the central moments; 0 for a normal distribution
        tail_index             Hill 1975: 1 / mean_{i <= k} log(|g|_(i) / |g|_(k+1)), |g| in falling order and
                               k = floor(tail_share * N); P(|g| > x) ~ x^-index, so small is heavy-tailed
        share_finite           the share of all elements that is finite

    Undefined numbers (no spread, k < 1) are NaN. Text `layer`: its name.
    Raises ValueError for an unknown layer or one without a weight, and for settings outside their range.
    """
    if num_bins < 1 or not 0 < tail_share < 1:
        raise ValueError(
            f"gradient_histogram: num_bins={num_bins}, tail_share={tail_share}: a histogram needs a bin or more, and "
            "a tail is a share between 0 and 1, both excluded. Set them so."
        )
    batches = listed(batches)
    name, module = pick(model, layer, batches[0][0])
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise ValueError(
            f"layer={name}: a {type(module).__name__} has no weight. Choose a convolution or linear layer."
        )
    with preserve_state(model):
        use_batch_statistics(model)
        weight.requires_grad_(True)
        gradients = [torch.autograd.grad(batch_loss(model, batch, loss), weight)[0] for batch in batches]
    elements = np.concatenate([gradient.double().flatten().cpu().numpy() for gradient in gradients])
    finite = elements[np.isfinite(elements)]
    numbers = {"share_finite": len(finite) / len(elements)} | _numbers(finite, tail_share)
    largest = numbers["max_abs"] if numbers["max_abs"] > 0 else 1.0
    counts, edges = np.histogram(finite, bins=num_bins, range=(-largest, largest))
    probability = np.geomspace(1 / max(len(finite), 2), 1, num=200)
    arrays = {
        "counts": counts,
        "edges": edges,
        "tail_probability": probability,
        "tail_value": np.quantile(np.abs(finite), 1 - probability) if len(finite) else np.full(200, np.nan),
    }
    return Measurement(arrays, numbers, {"layer": name})


def _numbers(elements: np.ndarray, tail_share: float) -> dict[str, float]:
    nan = float("nan")
    if not len(elements):
        return dict.fromkeys(("std", "max_abs", "range", "p99_9", "excess_kurtosis", "tail_index"), nan)
    magnitudes = np.abs(elements)
    std = elements.std()
    return {
        "std": float(std),
        "max_abs": float(magnitudes.max()),
        "range": float(np.ptp(elements)),
        "p99_9": float(np.quantile(magnitudes, 0.999)),
        # of the standardized elements: the fourth power of a small gradient would underflow
        "excess_kurtosis": float((((elements - elements.mean()) / std) ** 4).mean() - 3) if std > 0 else nan,
        "tail_index": hill_index(magnitudes, tail_share),
    }


def hill_index(magnitudes: np.ndarray, tail_share: float) -> float:
    """Hill's estimate of the tail index from the share `tail_share` of largest `magnitudes`; NaN if too few or zero."""
    k = int(tail_share * len(magnitudes))
    if k < 1:
        return float("nan")
    largest = np.sort(magnitudes)[-k - 1 :]
    threshold, tail = largest[0], largest[1:]
    if threshold <= 0 or tail[-1] == threshold:
        return float("nan")
    return float(1 / np.log(tail / threshold).mean())
