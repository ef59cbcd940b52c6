"""Sharpness: the largest eigenvalue of the Hessian of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.gradients import batch_loss, listed, trained_parameters
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement

Product = Callable[[list[Tensor]], list[Tensor]]


def sharpness(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    mode: str = "train",
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
    stability_threshold: float = math.nan,
) -> Measurement:
    """The largest eigenvalue of the Hessian H of the mean loss over the batches, by power iteration.

        v <- H v / |H v|,    lambda = v . H v,

    with Hessian-vector products by double backward (Pearlmutter 1994, Neural Computation 6), from a normal vector drawn
    with `seed`, until lambda changes by less than `tolerance` relative to itself, or for `max_iterations` products.
    Power iteration finds the eigenvalue of largest magnitude. If it is negative, a second iteration on H - lambda I
    finds the largest one.

    H is over all parameters that require a gradient. mode="train": norms use the batch's statistics, as in training,
    without dropout and stochastic depth. mode="eval": norms use running statistics. The two differ: batch statistics
    make the loss invariant to the scale of the weights before a norm.

    Arrays: `estimate` (iterations,), lambda by iteration, of the second iteration if there were two.
    Numbers: `largest_eigenvalue`; `dominant_eigenvalue`, the one of largest magnitude; `iterations`, all products;
    `converged`, 1 or 0; `residual`, |H v - lambda v| of the largest one. If the loss is not finite, the eigenvalues
    are NaN. With a `stability_threshold`, as `runner.optim.optimizers.stability_threshold` gives it, also that number
    and `threshold_share`, the largest eigenvalue over it: near 1 at the edge of stability (Cohen et al. 2021, arXiv
    2103.00065), where the batches are all training images. Text: `mode`.

    Raises ValueError without batches or parameters, and for an unknown mode or an impossible tolerance.
    """
    if mode not in ("train", "eval"):
        raise ValueError(f"sharpness: mode={mode}: unknown. Choose train (batch statistics) or eval (running ones).")
    if tolerance <= 0 or max_iterations < 2:
        raise ValueError(
            f"sharpness: tolerance={tolerance}, max_iterations={max_iterations}: power iteration cannot settle. "
            "Give a tolerance above 0 and 2 iterations or more."
        )
    batches = listed(batches)
    with preserve_state(model):
        if mode == "train":
            use_batch_statistics(model)
        else:
            model.eval()
        parameters = list(trained_parameters(model).values())

        def product(vector: list[Tensor]) -> list[Tensor]:
            total = [torch.zeros_like(parameter) for parameter in parameters]
            for batch in batches:
                with preserve_state(model):  # else norms that train with running estimates would change the function
                    gradients = _hessian_vector_product(batch_loss(model, batch, loss), parameters, vector)
                torch._foreach_add_(total, gradients, alpha=1 / len(batches))
            return total

        start = _random_unit_vector(parameters, seed)
        estimates, residual, converged = _power_iteration(product, start, tolerance, max_iterations)
        dominant, iterations = estimates[-1], len(estimates)
        if dominant < 0:

            def shifted(vector: list[Tensor]) -> list[Tensor]:
                return torch._foreach_sub(product(vector), torch._foreach_mul(vector, dominant))

            estimates, residual, converged = _power_iteration(shifted, start, tolerance, max_iterations)
            iterations += len(estimates)
            estimates = [estimate + dominant for estimate in estimates]
    numbers = {
        "largest_eigenvalue": estimates[-1],
        "dominant_eigenvalue": dominant,
        "iterations": float(iterations),
        "converged": float(converged),
        "residual": residual,
    }
    if math.isfinite(stability_threshold):
        numbers |= {"stability_threshold": stability_threshold, "threshold_share": estimates[-1] / stability_threshold}
    return Measurement({"estimate": np.array(estimates)}, numbers, {"mode": mode})


def _power_iteration(
    product: Product, vector: list[Tensor], tolerance: float, max_iterations: int
) -> tuple[list[float], float, bool]:
    """The estimates v . A v, the last residual |A v - (v . A v) v|, and whether the estimates settled."""
    estimates: list[float] = []
    residual = np.nan
    for _ in range(max_iterations):
        image = product(vector)
        estimates.append(_dot(vector, image))
        residual = _norm(torch._foreach_sub(image, torch._foreach_mul(vector, estimates[-1])))
        length = _norm(image)
        if length == 0 or not np.isfinite(length):
            return estimates, residual, length == 0
        if len(estimates) > 1 and abs(estimates[-1] - estimates[-2]) <= tolerance * abs(estimates[-1]):
            return estimates, residual, True
        vector = torch._foreach_div(image, length)
    return estimates, residual, False


def _hessian_vector_product(value: Tensor, parameters: list[nn.Parameter], vector: list[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    slope = torch.stack([(gradient * part).sum() for gradient, part in zip(gradients, vector, strict=True)]).sum()
    if not slope.requires_grad:  # the loss is linear in the parameters
        return [torch.zeros_like(parameter) for parameter in parameters]
    return list(torch.autograd.grad(slope, parameters, materialize_grads=True))


def _random_unit_vector(parameters: list[nn.Parameter], seed: int) -> list[Tensor]:
    """Drawn on the CPU, so that it is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(parameter.shape, generator=generator).to(parameter) for parameter in parameters]
    return torch._foreach_div(vector, _norm(vector))


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).double().sum().item()


def _norm(vector: list[Tensor]) -> float:
    return torch.stack(torch._foreach_norm(vector)).double().norm().item()
