"""The largest learning rate at which a model still trains, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.gradients import at_least_float32, listed, trained_parameters
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement

LEARNED = 0.95  # of the loss of equal logits


def largest_rate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    transform_gradients: Callable[[nn.Module], object] = lambda model: None,
    *,
    exponents: tuple[float, float] = (-5.0, 3.0),
    decades: float = 0.05,
    momentum: float = 0.9,
) -> Measurement:
    """The largest rate at which SGD, one step a batch, from the same parameters each time, trains the model.

    A rate trains if the loss of each step is finite and its mean over the last quarter of the steps is below 0.95 times
    that of equal logits, log K for K classes: a network whose activations died does not. The search goes down from
    10^exponents[1], a decade at a time, to the first rate that trains, and then halves the decade above it until that
    is at most `decades` wide. `transform_gradients` changes the gradients before each step, as the run's methods do.
    Norms use the batch's statistics, without dropout and stochastic depth; there is no weight decay.

    Arrays, for T trials in their order: `log10_rate`, `last_loss` (infinite after a loss that is not finite) and
    `trains` (T,). Numbers: `rate`, and `log10_rate`, its decades; at most the upper end of the range, and NaN if no
    rate in it trains.

    Raises ValueError without batches or trained parameters, and for settings that give no search.
    """
    if exponents[0] >= exponents[1] or decades <= 0:
        raise ValueError(
            f"largest_rate: exponents={tuple(exponents)}, decades={decades}: these give no search. Give the smaller "
            "exponent first, and a width above 0."
        )
    batches = listed(batches)
    trials: dict[float, float] = {}
    with preserve_state(model):
        use_batch_statistics(model)
        bound = LEARNED * _loss_of_equal_logits(model, batches[0], loss)

        def trains(exponent: float) -> bool:
            with preserve_state(model):
                losses = _train(model, batches, loss, transform_gradients, lr=10**exponent, momentum=momentum)
            trials[exponent] = float(np.mean(losses[-math.ceil(len(batches) / 4) :]))
            return trials[exponent] < bound

        best = _search(trains, *exponents, decades)
    last_loss = np.array(list(trials.values()))
    arrays = {"log10_rate": np.array(list(trials), dtype=float), "last_loss": last_loss, "trains": last_loss < bound}
    return Measurement(arrays, {"rate": 10**best, "log10_rate": best})


def _search(trains: Callable[[float], bool], lowest: float, highest: float, width: float) -> float:
    """The largest exponent that trains, to within `width`; NaN if none of the decades' ends does."""
    trained = highest
    while not trains(trained):
        if trained == lowest:
            return math.nan
        trained = max(trained - 1, lowest)
    failed = min(trained + 1, highest)
    while failed - trained > width:
        middle = (trained + failed) / 2
        trained, failed = (middle, failed) if trains(middle) else (trained, middle)
    return trained


def _train(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Loss,
    transform_gradients: Callable[[nn.Module], object],
    *,
    lr: float,
    momentum: float,
) -> list[float]:
    """The loss of each step, up to the first that is not finite, which counts as infinite."""
    parameters = list(trained_parameters(model).values())
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    losses = []
    for images, targets in batches:
        optimizer.zero_grad()
        value = loss(at_least_float32(model(images)), targets)
        value.backward()
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            return [*losses[:-1], math.inf]
        transform_gradients(model)
        optimizer.step()
    return losses


@torch.no_grad()
def _loss_of_equal_logits(model: nn.Module, batch: Batch, loss: Loss) -> float:
    images, targets = batch
    with preserve_state(model):
        logits = at_least_float32(model(images))
    return loss(torch.zeros_like(logits), targets).item()
