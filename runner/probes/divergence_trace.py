"""Activations by layer through gradient steps that may diverge."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.activation_statistics import channel_moments
from runner.probes.gradients import batch_loss, listed, loss_and_gradients
from runner.probes.layers import layers_by_depth
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement


def divergence_trace(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, *, lr: float, steps: int = 1, parts: int = 1
) -> Measurement:
    """Channel means and variances by layer through plain SGD steps (Bjorck et al. 2018, arXiv 1806.02375, fig. 4).

    Step t is theta_t = theta_{t-1} - lr * grad L_t(theta_{t-1}), on the batches in turn. Before the first step and
    after each of the `parts` of a step, the probe records for the first batch the outputs x of all convolutions outside
    shortcuts: for each channel c the mean and the biased variance of x over samples and positions, in float64. It ends
    after `steps` steps, or with the first record whose loss is not finite. The paper follows the parts of one step at a
    rate that diverges. Norms use the batch's statistics, without dropout and stochastic depth.

    Arrays, for R records, L layers in the order of execution and their K channels: `progress` (R,), in steps;
    `loss` (R,); `num_channels` (L,); `channel_mean` and `channel_variance` (R, K), layer after layer;
    `mean` and `variance` (R, L), the averages of |channel mean| and of the variance over a layer's channels. Values
    may be infinite or NaN.
    Numbers: `loss_before`, `loss_after`; `diverged_after`, the progress of the first record whose loss is not finite,
    else infinite; `rms_growth_first_layer` and `rms_growth_last_layer`, the largest root mean square of the layer's
    output over the first one; infinite if it overflows. Text `layers`: their names, one per line.

    Raises ValueError without batches, convolutions or trained parameters, and if `steps` or `parts` is below 1.
    """
    if steps < 1 or parts < 1:
        raise ValueError(f"divergence_trace: steps={steps}, parts={parts}: there is nothing to do. Give 1 or more.")
    batches = listed(batches)
    layers = layers_by_depth(model, batches[0][0])
    progress, losses, moments = [], [], []

    def record(done: float) -> bool:
        """Measure the first batch; whether its loss is finite."""
        value, of_channels = _measure(model, layers, batches[0], loss)
        progress.append(done)
        losses.append(value)
        moments.append(of_channels)
        return math.isfinite(value)

    with preserve_state(model):
        use_batch_statistics(model)
        going = record(0.0)
        for step, batch in enumerate(islice(cycle(batches), steps)):
            if not going:
                break
            _, gradients = loss_and_gradients(model, batch, loss)
            start = {name: model.get_parameter(name).detach().clone() for name in gradients}
            for part in range(1, parts + 1):
                share = part / parts
                for name, gradient in gradients.items():
                    model.get_parameter(name).data.copy_(start[name].sub(gradient, alpha=lr * share))
                going = record(step + share)
                if not going:
                    break
    mean, variance = np.stack(moments, axis=1)
    channels = np.array([layer.out_channels for layer in layers.values()])
    numbers = {
        "loss_before": losses[0],
        "loss_after": losses[-1],
        "diverged_after": math.inf if going else progress[-1],
        "rms_growth_first_layer": _rms_growth(mean, variance, slice(None, channels[0])),
        "rms_growth_last_layer": _rms_growth(mean, variance, slice(-channels[-1], None)),
    }
    arrays = {
        "progress": np.array(progress),
        "loss": np.array(losses),
        "num_channels": channels,
        "channel_mean": mean,
        "channel_variance": variance,
        "mean": _layer_average(np.abs(mean), channels),
        "variance": _layer_average(variance, channels),
    }
    return Measurement(arrays, numbers, {"layers": "\n".join(layers)})


def _measure(
    model: nn.Module, layers: dict[str, nn.Module], batch: Batch, loss: Loss
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """The loss, and the channels' means and variances, layer after layer; of a layer's first run if it runs twice."""
    moments: dict[nn.Module, tuple[np.ndarray, np.ndarray]] = {}

    def note(module: nn.Module, _: object, out: Tensor) -> None:
        if module not in moments:
            moments[module] = channel_moments(out)

    with preserve_state(model), torch.no_grad():
        for layer in layers.values():
            layer.register_forward_hook(note)
        value = batch_loss(model, batch, loss).item()
    means, variances = zip(*(moments[layer] for layer in layers.values()), strict=True)
    return value, (np.concatenate(means), np.concatenate(variances))


def _layer_average(values: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The averages over each layer's channels: (R, K) to (R, L)."""
    return np.add.reduceat(values, np.cumsum(channels) - channels, axis=1) / channels


def _rms_growth(mean: np.ndarray, variance: np.ndarray, channels: slice) -> float:
    rms = np.sqrt((mean[:, channels] ** 2 + variance[:, channels]).mean(1))
    with np.errstate(divide="ignore", invalid="ignore"):  # a layer may start at 0
        return float(np.where(np.isfinite(rms), rms, np.inf).max() / rms[0])
