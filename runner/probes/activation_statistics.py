"""Means and deviations of the channels by depth (Bjorck et al. 2018, arXiv 1806.02375, figure 5).

At initialization they grow nearly exponentially with depth in a network without batch norm, and hardly with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.gradients import listed
from runner.probes.layers import layers_by_depth, pick
from runner.probes.probe import Batch
from runner.results.measurement import Measurement


def activation_statistics(
    models: nn.Module | Iterable[nn.Module],
    batches: Iterable[Batch],
    *,
    layers: Sequence[int | float | str] | None = None,
) -> Measurement:
    """The mean and the standard deviation of each channel of a convolution's output, by depth.

    For channel c of layer l, over all samples b of all batches and all positions i, j:

        mean_{l,c} = mean_{b,i,j}(x)        std_{l,c} = sqrt(mean_{b,i,j}((x - mean_{l,c})^2))

    `models`: one, or an iterable of several initializations of one architecture, which may build them one at a time.
    `layers`: as `pick` takes them; None is all convolutions outside shortcuts, in the order of execution. Norms use the
    batch's statistics, without dropout and stochastic depth.

    Arrays, with M models and L layers of C_l channels:

        depth           (L,)           place of the layer in the order of execution, from 0
        num_channels    (L,)           C_l
        channel_mean    (M, sum C_l)   mean_{l,c}, layer after layer
        channel_std     (M, sum C_l)   std_{l,c}
        mean            (M, L)         mean_c |mean_{l,c}|
        std             (M, L)         mean_c std_{l,c}

    Numbers: `slope_log10_std` and `slope_log10_mean`, the least-squares slopes of log10 `std` and log10 `mean` by depth
    in decades per layer, without layers whose value is 0 or not finite, averaged over models; `slope_log10_std_spread`,
    the standard deviation of the first over models (NaN for one). Text `layers`: their names, one per line.

    Raises ValueError for unknown layers, and for models whose layers differ.
    """
    batches = listed(batches)
    models = [models] if isinstance(models, nn.Module) else models
    return merge([_measure(model, batches, layers) for model in models])


def merge(measurements: Sequence[Measurement]) -> Measurement:
    """Merge measurements of several initializations. Raises ValueError if there is none, or their layers differ."""
    if not measurements:
        raise ValueError("activation_statistics: no model was measured. Give one at least.")
    first = measurements[0]
    if any(other.texts != first.texts for other in measurements):
        raise ValueError("activation_statistics: the models have different layers. Give models of one architecture.")
    arrays = {name: first.arrays[name] for name in ("depth", "num_channels")}
    for name in ("channel_mean", "channel_std", "mean", "std"):
        arrays[name] = np.concatenate([measurement.arrays[name] for measurement in measurements])
    slopes = {name: [slope_log10(arrays["depth"], values) for values in arrays[name]] for name in ("mean", "std")}
    numbers = {
        "slope_log10_std": float(np.mean(slopes["std"])),
        "slope_log10_std_spread": float(np.std(slopes["std"], ddof=1)) if len(slopes["std"]) > 1 else float("nan"),
        "slope_log10_mean": float(np.mean(slopes["mean"])),
    }
    return Measurement(arrays, numbers, first.texts)


def slope_log10(depth: np.ndarray, values: np.ndarray) -> float:
    """Slope of log10(values) by depth, least squares over the positive finite ones; NaN for fewer than two."""
    counted = np.isfinite(values) & (values > 0)
    if counted.sum() < 2:
        return float("nan")
    return float(np.polyfit(depth[counted], np.log10(values[counted]), 1)[0])


def _measure(model: nn.Module, batches: Sequence[Batch], layers: Sequence[int | float | str] | None) -> Measurement:
    by_depth = layers_by_depth(model, batches[0][0])
    names = list(by_depth) if layers is None else [pick(model, layer, batches[0][0])[0] for layer in layers]
    depth = {name: index for index, name in enumerate(by_depth)}
    if missing := [name for name in names if name not in depth]:
        raise ValueError(
            f"layers={', '.join(missing)}: no convolution outside shortcuts that the model runs. "
            f"Choose from {', '.join(by_depth)}."
        )
    moments: dict[nn.Module, list[tuple[np.ndarray, np.ndarray]]] = {by_depth[name]: [] for name in names}
    with preserve_state(model), torch.no_grad():
        use_batch_statistics(model)
        for layer in moments:
            layer.register_forward_hook(lambda layer, _inputs, out: moments[layer].append(channel_moments(out)))
        for images, _ in batches:
            model(images)
    weights = np.array([len(images) for images, _ in batches], dtype=float)
    pooled = [_pool(moments[by_depth[name]], weights) for name in names]
    arrays = {
        "depth": np.array([depth[name] for name in names]),
        "num_channels": np.array([len(mean) for mean, _ in pooled]),
        "channel_mean": np.concatenate([mean for mean, _ in pooled])[None].astype(np.float32),
        "channel_std": np.concatenate([std for _, std in pooled])[None].astype(np.float32),
        "mean": np.array([[np.abs(mean).mean() for mean, _ in pooled]]),
        "std": np.array([[std.mean() for _, std in pooled]]),
    }
    return Measurement(arrays, {}, {"layers": "\n".join(names)})


def channel_moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each channel of `x`, (B, C, *positions), over samples and positions, in float64.

    Squares of a diverging network's float32 activations would overflow in float32.
    """
    variance, mean = torch.var_mean(x.detach().double().transpose(0, 1).flatten(1), dim=1, correction=0)
    return mean.cpu().numpy(), variance.cpu().numpy()


def _pool(moments: Sequence[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all batches: the variance within batches plus that of their means."""
    means, variances = (np.stack(values) for values in zip(*moments, strict=True))
    mean = np.average(means, axis=0, weights=weights)
    return mean, np.sqrt(np.average(variances + (means - mean) ** 2, axis=0, weights=weights))
