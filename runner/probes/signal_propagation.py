"""Signal propagation plots: activations from block to block (Brock et al. 2021, arXiv 2101.08692, figure 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.activation_statistics import channel_moments
from runner.probes.gradients import listed
from runner.probes.layers import SHORTCUTS
from runner.probes.probe import Batch
from runner.results.measurement import Measurement

Averages = list[tuple[float, float]]  # avg_sq_mean and avg_var, a pair for each batch


def signal_propagation(
    model: nn.Module, batches: Iterable[Batch], *, skipinit_gain: float | None = None
) -> Measurement:
    """The size of the activations after the stem and after each residual block, and that of each residual branch.

    For channel c of an activation x, over samples b and positions i, j, for each batch and then averaged over batches:

        avg_sq_mean = mean_c(mean_{b,i,j}(x)^2)        avg_var = mean_c(var_{b,i,j}(x))        with biased variances

    `res_avg_var` is `avg_var` of the residual branch. Blocks with a method `residual_branch` return it, before
    stochastic depth, skip gain and alpha. In blocks with numbered layers (conv1 .., bn1 ..) it is the output of the
    last convolution or of the norm after it; a skip gain in that norm's place is measured at its input. A residual
    block is a module with an attribute `downsample` or `shortcut`, which may be None.

    `skipinit_gain`: the value of all skip gains in the measurement; None leaves them. They start at 0, where only the
    shortcuts of a normalizer-free net act; its expected values are for a gain of 1. Norms use the batch's statistics,
    without dropout and stochastic depth.

    Arrays, for the stem and K blocks: `avg_sq_mean`, `avg_var`, `res_avg_var` (1 + K,), NaN without a branch;
    `expected_avg_var`, `expected_res_avg_var` (1 + K,), for blocks of expected input deviation `beta`

        expected_avg_var = (1 if the shortcut is not the identity else beta^2) + alpha^2        expected_res_avg_var = 1

    (for the stem the first block's beta^2) and NaN for other blocks; `resets` (1 + K,), true if the shortcut is not the
    identity. They hold for images of independent values with variance 1. In smooth images neighbouring values are
    alike, and standardized filters remove what these share: the measured variances are lower from the stem on. Numbers:
    `final_avg_var`; with expected values also `largest_factor_off`, the largest factor between measured and expected
    `avg_var` of a block. Text `places`: "stem" and the names of the blocks, one per line.

    Raises ValueError for a model without residual blocks, and for a gain if there are none to set.
    """
    with preserve_state(model), torch.no_grad():
        use_batch_statistics(model)
        if skipinit_gain is not None:
            _set_gains(model, skipinit_gain)
        names = {module: name for name, module in model.named_modules() if _is_block(module)}
        if not names:
            raise ValueError(
                "signal_propagation: looked for residual blocks (modules with an attribute downsample or shortcut) in "
                f"a {type(model).__name__} and found none. Choose a residual network or another probe."
            )
        stem, outputs, branches = _record(model, list(names), listed(batches))
    blocks = list(outputs)
    avg_sq_mean, avg_var = np.array([np.mean(averages, axis=0) for averages in (stem, *outputs.values())]).T
    of_branches = [np.mean(branches[block], axis=0)[1] if branches[block] else np.nan for block in blocks]
    expected_stem = blocks[0].beta ** 2 if _is_normalizer_free(blocks[0]) else np.nan
    arrays = {
        "avg_sq_mean": avg_sq_mean,
        "avg_var": avg_var,
        "res_avg_var": np.array([np.nan, *of_branches]),
        "expected_avg_var": np.array([expected_stem, *map(_expected_variance, blocks)]),
        "expected_res_avg_var": np.array([np.nan, *(1.0 if _is_normalizer_free(b) else np.nan for b in blocks)]),
        "resets": np.array([False, *(_shortcut(block) is not None for block in blocks)]),
    }
    numbers = {"final_avg_var": float(avg_var[-1])}
    if np.isfinite(arrays["expected_avg_var"]).any():
        off = np.abs(np.log(avg_var / arrays["expected_avg_var"]))
        numbers["largest_factor_off"] = float(np.exp(np.nanmax(off[1:])))  # a pool in the stem reduces the variance
    return Measurement(arrays, numbers, {"places": "\n".join(["stem", *(names[block] for block in blocks)])})


def _record(
    model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch]
) -> tuple[Averages, dict[nn.Module, Averages], dict[nn.Module, Averages]]:
    """The averages after the stem, of the blocks' outputs in the order of execution, and of their residual branches."""
    stem: Averages = []
    outputs: dict[nn.Module, Averages] = {}
    branches: dict[nn.Module, Averages] = {block: [] for block in blocks}

    def enter(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        outputs.setdefault(block, [])
        if block is next(iter(outputs)):
            stem.append(_averages(inputs[0]))

    for block in blocks:
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(lambda block, _inputs, output: outputs[block].append(_averages(output)))
        _watch_branch(block, branches[block])
    for images, _ in batches:
        model(images)
    return stem, outputs, branches


def _averages(x: Tensor) -> tuple[float, float]:
    """avg_sq_mean and avg_var of an activation."""
    mean, variance = channel_moments(x)
    return float((mean**2).mean()), float(variance.mean())


def _watch_branch(block: nn.Module, averages: Averages) -> None:
    """Append the averages of the residual branch of `block` whenever it runs; nothing if the branch is unknown."""

    def note(x: Tensor) -> None:
        averages.append(_averages(x))  # at once: the sum with the shortcut may overwrite the branch

    numbered = [child for name, child in block.named_children() if name.rstrip("0123456789") in ("conv", "bn", "norm")]
    if numbered and hasattr(numbered[-1], "skipinit_gain"):
        numbered[-1].register_forward_pre_hook(lambda _module, inputs: note(inputs[0]))
    elif hasattr(block, "residual_branch"):
        compute = block.residual_branch

        def watched(x: Tensor) -> Tensor:
            out = compute(x)
            note(out)
            return out

        block.residual_branch = watched
    elif numbered:
        numbered[-1].register_forward_hook(lambda _module, _inputs, output: note(output))


def _is_block(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in SHORTCUTS)


def _shortcut(block: nn.Module) -> nn.Module | None:
    return next((getattr(block, name) for name in SHORTCUTS if getattr(block, name, None) is not None), None)


def _is_normalizer_free(block: nn.Module) -> bool:
    """Whether `beta` and `alpha` are those of `NormalizerFreeBlock`; elsewhere beta may be its inverse."""
    return all(hasattr(block, name) for name in ("beta", "alpha", "residual_branch"))


def _expected_variance(block: nn.Module) -> float:
    if not _is_normalizer_free(block):
        return float("nan")
    return (block.beta**2 if _shortcut(block) is None else 1.0) + block.alpha**2


def _set_gains(model: nn.Module, gain: float) -> None:
    gains = [parameter for name, parameter in model.named_parameters() if name.split(".")[-1] == "skipinit_gain"]
    if not gains:
        raise ValueError(f"skipinit_gain={gain}: a {type(model).__name__} has no skip gains. Leave it at null.")
    for parameter in gains:
        parameter.fill_(gain)
