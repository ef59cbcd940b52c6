"""How far the terms of a convolution's gradient cancel (Bjorck et al. 2018, arXiv 1806.02375, table 1).

At initialization without batch norm the terms of a weight's gradient have mostly one sign, whatever the image; with it
they nearly cancel: the table has a / b of about 2 without, and of 10 to 10^2 and more with batch norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.layers.surgery import CONVOLUTIONS
from runner.probes.gradients import batch_loss, listed
from runner.probes.layers import pick
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement


def gradient_terms(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    layers: Sequence[int | float | str] = (0.16, 0.49, 0.82),
    chunk_size: int = 16,
) -> Measurement:
    """The sum of the absolute terms of a weight's gradient, and the absolute value of their sum.

    With the input x of a convolution (padded) and the gradient d of its output, at stride and dilation 1,

        dL/dw_{o,c,x,y} = sum_{b,i,j} d^{b,o}_{i,j} x^{b,c}_{i+x,j+y}

    has one term for each sample b and position i, j. For each weight a = sum |term| and b = |sum term|; since
    |d x| = |d| |x|, a is the gradient's formula with |d| and |x|. Stride, dilation, padding and groups are those of the
    convolution. w is the weight that the convolution uses, the standardized one if it standardizes.

    `layers`: convolutions, as `pick` takes them; by default those of the paper (18, 54 and 90 of 110) by depth.
    Sums are in float64, over `chunk_size` samples at a time; each batch has its own a and b. Norms use the batch's
    statistics, without dropout and stochastic depth.

    Arrays, for L layers: `sum_of_abs` and `abs_of_sum` (L,), the means of a and b over weights and batches; `ratio`
    (L,), their quotient, 1 if all terms have one sign; `median_ratio` (L,), the median of a / b over the weights with
    terms other than 0 (a few weights with b near 0 would determine the mean).
    Numbers: `ratio`, the geometric mean over layers, and `ratio/<name>` of each. Text `layers`: names, one per line.

    Raises ValueError for an unknown layer, one that is no convolution, and one that runs twice.
    """
    batches = listed(batches)
    chosen = dict(pick(model, layer, batches[0][0]) for layer in layers)
    for name, module in chosen.items():
        if not isinstance(module, CONVOLUTIONS):
            raise ValueError(f"layer={name}: a {type(module).__name__} is not a convolution. Choose one.")
    sums_of: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in chosen}
    with preserve_state(model):
        use_batch_statistics(model)
        model.requires_grad_(True)
        watched = {name: _watch(module) for name, module in chosen.items()}
        for images, targets in batches:
            value = batch_loss(model, (images, targets), loss)
            for name, runs in watched.items():
                if len(runs) != 1:
                    raise ValueError(f"layer={name}: runs {len(runs)} times in a forward. Choose one that runs once.")
            gradients = torch.autograd.grad(value, [runs[0][1] for runs in watched.values()])
            for (name, runs), gradient in zip(watched.items(), gradients, strict=True):
                sums_of[name].append(_sums(chosen[name], runs.pop()[0], gradient, chunk_size))
    rows = []
    for pairs in sums_of.values():
        a, b = (torch.stack(sums) for sums in zip(*pairs, strict=True))
        has_terms = a > 0
        rows.append((a.mean(), b.mean(), a.mean() / b.mean(), (a[has_terms] / b[has_terms]).median()))
    sum_of_abs, abs_of_sum, ratio, median_ratio = np.array([[float(value) for value in row] for row in rows]).T
    return Measurement(
        {"sum_of_abs": sum_of_abs, "abs_of_sum": abs_of_sum, "ratio": ratio, "median_ratio": median_ratio},
        {"ratio": float(np.exp(np.log(ratio).mean()))}
        | {f"ratio/{name}": float(value) for name, value in zip(chosen, ratio, strict=True)},
        {"layers": "\n".join(chosen)},
    )


def _watch(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The inputs and outputs of `module`, in a list that grows as it runs."""
    runs: list[tuple[Tensor, Tensor]] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        runs.append((inputs[0].detach(), output))
        return output.clone()  # what comes next may write into it

    module.register_forward_hook(note)
    return runs


def _sums(conv: nn.Module, x: Tensor, gradient: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """sum |term| and |sum term| for each weight of `conv`, of the weight's shape, in float64."""
    # The weight's gradient does not depend on its value; _conv_forward applies the padding.
    weight = torch.zeros_like(conv.weight, dtype=torch.float64, requires_grad=True)
    of_abs, signed = torch.zeros_like(weight), torch.zeros_like(weight)
    for x_part, d_part in zip(x.double().split(chunk_size), gradient.double().split(chunk_size), strict=True):
        for total, inputs, d in ((of_abs, x_part.abs(), d_part.abs()), (signed, x_part, d_part)):
            output = conv._conv_forward(inputs, weight, None)
            total += torch.autograd.grad(output, weight, d)[0]
    return of_abs, signed.abs()
