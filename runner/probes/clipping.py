"""The ratios that adaptive gradient clipping limits: each unit's gradient norm over its weight norm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from runner.config.text import nearest
from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.layers.unitwise_norm import unitwise_norm
from runner.probes.gradients import listed, loss_and_gradients
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_BINS = 64


def clipping(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    clip: float = 0.01,
    eps: float = 1e-3,
    exclude: Sequence[str] = (),
    classifier_weight: str | None = None,
) -> Measurement:
    """Which gradients adaptive gradient clipping would clip (Brock et al. 2021, arXiv 2102.06171), applied or not.

    For each unit i of each parameter,

        ratio_i = |G_i| / max(|W_i|, eps),    clipped where ratio_i > clip.

    for the units of `runner.layers.unitwise_norm`. Each batch stands for one optimizer step: G is the gradient of its
    mean loss, and the units of all batches are pooled. Norms use the batch's statistics, without dropout and stochastic
    depth. `exclude` names parameters and modules to leave out, beside `classifier_weight`,
    the name of the parameter that the paper leaves out.

    Arrays, for P parameters in the order of registration: `units` (P,), their numbers; `level` (5,) and
    `ratio` (P, 5), the quantiles of the ratio at these levels; `share_above` (P,), the share of clipped units.
    `counts` (64,) of all units whose ratio is above 0, between `edges` (65,) in log10 of the ratio.
    Numbers over all units: `share_above`, `median_ratio`, `largest_ratio`; and `clip`.
    Text `parameters`: their names, one per line.

    Raises ValueError without batches, for an unknown name in `exclude`, and if no parameter is left.
    """
    batches = listed(batches)
    ratios: dict[str, list[Tensor]] = defaultdict(list)
    with preserve_state(model):
        use_batch_statistics(model)
        left_out = _left_out(model, [*exclude, *([classifier_weight] if classifier_weight else [])])
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for batch in batches:
            with preserve_state(model):
                _, gradients = loss_and_gradients(model, batch, loss)
            for name, gradient in gradients.items():
                if name not in left_out:
                    ratio = unitwise_norm(gradient) / unitwise_norm(weights[name]).clamp(min=eps)
                    ratios[name].append(ratio.flatten().double().cpu())
    if not ratios:
        raise ValueError(f"clipping: exclude={list(exclude)}: no parameter with a gradient is left. Exclude fewer.")
    names = [name for name in weights if name in ratios]
    by_name = [torch.cat(ratios[name]).numpy() for name in names]
    together = np.concatenate(by_name)
    above_zero = together[(together > 0) & np.isfinite(together)]
    counts, edges = np.histogram(np.log10(above_zero), bins=NUM_BINS)
    arrays = {
        "units": np.array([len(values) // len(ratios[name]) for name, values in zip(names, by_name, strict=True)]),
        "level": np.array(LEVELS),
        "ratio": np.array([np.quantile(values, LEVELS) for values in by_name]),
        "share_above": np.array([(values > clip).mean() for values in by_name]),
        "counts": counts,
        "edges": edges,
    }
    numbers = {
        "share_above": float((together > clip).mean()),
        "median_ratio": float(np.median(together)),
        "largest_ratio": float(together.max()),
        "clip": clip,
    }
    return Measurement(arrays, numbers, {"parameters": "\n".join(names)})


def _left_out(model: nn.Module, exclude: Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    left_out = set()
    for entry in exclude:
        matching = {name for name in names if name == entry or name.startswith(f"{entry}.")}
        if not matching:
            close = nearest(entry, {*names, *(name.rpartition(".")[0] for name in names)} - {""}, 3)
            raise ValueError(
                f"clipping: exclude={entry}: a {type(model).__name__} has no parameter or module of that name. "
                f"Choose from {', '.join(close or names[:3])}."
            )
        left_out |= matching
    return left_out
