"""Signal propagation plots: how activations grow from block to block (Brock et al. 2021, arXiv 2101.08692, figure 1).

Variances are biased ones, taken over samples and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.activation_statistics import channel_moments
from runner.probes.gradients import listed
from runner.probes.layers import SHORTCUTS
from runner.probes.probe import Batch
from runner.results.measurement import Measurement


def signal_propagation(
    model: nn.Module, batches: Iterable[Batch], *, skipinit_gain: float | None = None
) -> Measurement:
    """The size of the activations after the stem and after each residual block, and that of each residual branch.

    With the channel c of an activation x, over samples b and positions i, j, each batch by itself and then averaged:

        avg_sq_mean = mean_c(mean_{b,i,j}(x)^2)        avg_var = mean_c(var_{b,i,j}(x))

    `res_avg_var` is `avg_var` of the residual branch: in blocks with a method `residual_branch` of what it returns,
    before stochastic depth, skip gain and alpha; in others, with numbered layers (conv1 .., bn1 ..), of what the last
    convolution gives, or the last norm after it; where that became a skip gain, it is measured before it.
    A residual block is a module with an attribute `downsample` or `shortcut`, which may be None.

    `skipinit_gain`: what all skip gains are set to for the measurement; None leaves them. They start at 0, where a
    normalizer-free net is but its shortcuts; its expected values are for a gain of 1.
    Norms use the batch's statistics; there is no dropout and no stochastic depth.

    Arrays, for the stem and K blocks: `avg_sq_mean`, `avg_var`, `res_avg_var` (1 + K,), NaN for a branch that is not
    there; `expected_avg_var`, `expected_res_avg_var` (1 + K,): for blocks of expected input deviation `beta`

        expected_avg_var = (1 if the shortcut is not the identity else beta^2) + alpha^2        expected_res_avg_var = 1

    (1 for the stem, where the first block's beta says so) and NaN for other blocks; `resets` (1 + K,), true where the
    shortcut is not the identity. They hold for images of independent values with variance 1; a standardized filter
    takes out what neighbouring positions of smooth images have in common, so that these stay below from the stem on.
    Numbers: `final_avg_var`; with expected values also `largest_factor_off`, the largest factor between measured and
    expected `avg_var` of a block. Text `places`: "stem" and the names of the blocks, a line each.

    ValueError for a model without residual blocks, and for a gain where there are none to set.
    """
    with preserve_state(model), torch.no_grad():
        use_batch_statistics(model)
        if skipinit_gain is not None:
            _set_gains(model, skipinit_gain)
        blocks = {name: module for name, module in model.named_modules() if _is_block(module)}
        if not blocks:
            raise ValueError(
                "signal_propagation: looked for residual blocks (modules with an attribute downsample or shortcut) in "
                f"a {type(model).__name__} and found none. Choose a residual network or another probe."
            )
        recorder = _Recorder(blocks)
        for images, _ in listed(batches):
            model(images)
    arrays = recorder.arrays()
    numbers = {"final_avg_var": float(arrays["avg_var"][-1])}
    if np.isfinite(arrays["expected_avg_var"]).any():
        off = np.abs(np.log(arrays["avg_var"] / arrays["expected_avg_var"]))
        numbers["largest_factor_off"] = float(np.exp(np.nanmax(off[1:])))  # a pool in the stem takes variance away
    return Measurement(arrays, numbers, {"places": "\n".join(["stem", *recorder.names])})


class _Recorder:
    """Notes the statistics at each block while the model runs; `blocks` in any order, kept in that of execution."""

    def __init__(self, blocks: dict[str, nn.Module]) -> None:
        self.blocks = blocks
        self.names: list[str] = []
        self.stem: list[tuple[float, float]] = []
        self.outputs: dict[str, list[tuple[float, float]]] = {name: [] for name in blocks}
        self.branches: dict[str, list[tuple[float, float]]] = {name: [] for name in blocks}
        for name, block in blocks.items():
            block.register_forward_pre_hook(self._entering(name))
            block.register_forward_hook(
                lambda _module, _inputs, output, name=name: self.outputs[name].append(_averages(output))
            )
            _watch_branch(block, self.branches[name])

    def _entering(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in self.names:
                self.names.append(name)
            if name == self.names[0]:
                self.stem.append(_averages(inputs[0]))

        return note

    def arrays(self) -> dict[str, np.ndarray]:
        blocks = [self.blocks[name] for name in self.names]
        places = [self.stem, *(self.outputs[name] for name in self.names)]
        avg_sq_mean, avg_var = np.array([np.mean(found, axis=0) for found in places]).T
        branches = (self.branches[name] for name in self.names)
        expected = [_expected_variance(block) for block in blocks]
        stem = blocks[0].beta ** 2 if _is_normalizer_free(blocks[0]) else np.nan
        return {
            "avg_sq_mean": avg_sq_mean,
            "avg_var": avg_var,
            "res_avg_var": np.array([np.nan, *(np.mean(found, axis=0)[1] if found else np.nan for found in branches)]),
            "expected_avg_var": np.array([stem, *expected]),
            "expected_res_avg_var": np.array([np.nan, *(1.0 if _is_normalizer_free(b) else np.nan for b in blocks)]),
            "resets": np.array([False, *(_shortcut(block) is not None for block in blocks)]),
        }


def _averages(x: Tensor) -> tuple[float, float]:
    """avg_sq_mean and avg_var of an activation."""
    mean, variance = channel_moments(x)
    return float((mean**2).mean()), float(variance.mean())


def _watch_branch(block: nn.Module, found: list[tuple[float, float]]) -> None:
    """Let `block` note the averages of its residual branch; nothing is noted where it cannot be told."""

    def note(x: Tensor) -> None:
        found.append(_averages(x))  # at once: the sum with the shortcut may be written over the branch

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


def _shortcut(block: nn.Module) -> Any:
    return next((getattr(block, name) for name in SHORTCUTS if getattr(block, name, None) is not None), None)


def _is_normalizer_free(block: nn.Module) -> bool:
    """Whether `beta` and `alpha` mean what they mean in this project; elsewhere beta may be its inverse."""
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
