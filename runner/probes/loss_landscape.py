"""The loss along the gradient: which step sizes improve it, and which make it explode."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.gradients import batch_loss, listed, loss_and_gradients
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement


def loss_landscape(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    exponents: tuple[float, float] = (-5.5, 0.5),
    num_steps: int = 80,
    exploded: float = 1000.0,
) -> Measurement:
    """The relative loss after one gradient step, against its size (Bjorck et al. 2018, arXiv 1806.02375, fig. 3).

    For each batch B, from the same parameters theta, and for each step size s,

        r_B(s) = L_B(theta - s grad L_B(theta)) / L_B(theta),

    where norms use the batch's statistics, without dropout and stochastic depth. The paper measures at batches 1, 4 and
    7 of training. Step sizes are evenly spaced on a log scale from 10^exponents[0] to 10^exponents[1].

    Arrays, for N batches and S steps: `step_size` (S,); `relative_loss` (N, S), infinite if the new loss is not finite,
    NaN if the old one is not; `loss` (N,), the old one; `first_improving_step`, `last_improving_step`,
    `improving_decades` and `first_exploding_step` (N,).
    The range of improving steps is the longest run of neighbours with r < 1, so that neither rounding at tiny steps
    nor a single large step counts; if no step improves, its ends are NaN and its width is 0 decades. The exploding step
    is the first with r >= `exploded`, infinite if there is none.

    Numbers: the medians over the batches of these last four, and of the smallest r as `smallest_relative_loss`.

    Raises ValueError without batches, and for settings that give no increasing steps.
    """
    if num_steps < 2 or exponents[0] >= exponents[1]:
        raise ValueError(
            f"loss_landscape: exponents={tuple(exponents)}, num_steps={num_steps}: these give no increasing steps. "
            "Give two steps or more, and the smaller exponent first."
        )
    batches = listed(batches)
    step_sizes = np.logspace(*exponents, num_steps)
    old = np.empty(len(batches))
    new = np.empty((len(batches), num_steps))
    with preserve_state(model):
        use_batch_statistics(model)
        for row, batch in enumerate(batches):
            with preserve_state(model):
                old[row], gradients = loss_and_gradients(model, batch, loss)
            for column, step_size in enumerate(step_sizes):
                with preserve_state(model), torch.no_grad():  # each step starts from the same parameters and buffers
                    for name, gradient in gradients.items():
                        model.get_parameter(name).sub_(gradient, alpha=float(step_size))
                    new[row, column] = batch_loss(model, batch, loss).item()
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(np.isfinite(new), new, np.inf) / np.where(np.isfinite(old), old, np.nan)[:, None]
    by_batch = _by_batch(step_sizes, relative, exploded)
    numbers = {name: float(np.median(values)) for name, values in by_batch.items()}
    numbers["smallest_relative_loss"] = float(np.median(relative.min(1)))
    return Measurement({"step_size": step_sizes, "relative_loss": relative, "loss": old, **by_batch}, numbers)


def _by_batch(step_sizes: np.ndarray, relative: np.ndarray, exploded: float) -> dict[str, np.ndarray]:
    ends = np.array([_improving_range(step_sizes, row) for row in relative])
    first_exploding = [next(iter(step_sizes[row >= exploded]), np.inf) for row in relative]
    return {
        "first_improving_step": ends[:, 0],
        "last_improving_step": ends[:, 1],
        "improving_decades": np.nan_to_num(np.log10(ends[:, 1] / ends[:, 0])),
        "first_exploding_step": np.array(first_exploding),
    }


def _improving_range(step_sizes: np.ndarray, relative: np.ndarray) -> tuple[float, float]:
    """The ends of the longest run of improving steps; NaN if none improves."""
    changes = np.diff((relative < 1).astype(int), prepend=0, append=0)
    starts, ends = np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)
    if len(starts) == 0:
        return np.nan, np.nan
    longest = np.argmax(ends - starts)
    return step_sizes[starts[longest]], step_sizes[ends[longest] - 1]
