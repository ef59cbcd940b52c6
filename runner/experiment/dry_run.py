"""What a forward pass on torch's meta device shows of a model's layers: what they keep, and norms of a single value.

Batch norm of one value a channel has nothing to normalize: torch raises an error in training, after the run has
begun; instance norm and group norm give 0 whatever the input. Which it will be follows from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from runner.config.text import SettingError
from runner.layers.preserve_state import preserve_state
from runner.layers.sync_batch_norm import SYNC_BATCH_NORMS
from runner.methods.batch_channel_norm import BatchChannelNorm2d
from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS, ghost_batch_sizes

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, *SYNC_BATCH_NORMS)
KEPT = (nn.modules.conv._ConvNd, nn.Linear, *NORMS)  # layers whose output the backward pass needs
OTHER_NORM = "or another norm"


@dataclass
class Kept:
    """The numbers that a training step keeps of one image for its backward pass."""

    numbers: float = 0.0


@contextmanager
def watched(model: nn.Module, train: Mapping) -> Iterator[Kept]:
    """A context in which a forward pass of `model` counts what a step keeps; SettingError for a norm of one value.

    `train` are the settings of that name: how many images a device normalizes together. `preserve_state` restores the
    model.
    """
    kept = Kept()

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            kept.numbers += output.numel() / len(inputs[0])

    with preserve_state(model):
        for name, module in model.named_modules():
            if isinstance(module, NORMS):
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name: check_values(name, module, tuple(inputs[0].shape), train)
                )
            if isinstance(module, KEPT):
                module.register_forward_hook(count)
        yield kept


def check_values(name: str, norm: nn.Module, shape: tuple[int, ...], train: Mapping) -> None:
    """Raise a SettingError if training gives the norm called `name` a single value to normalize.

    `shape` is that of its input, (N, C, *positions), for any N.
    """
    positions = 1
    for length in shape[2:]:
        positions *= length
    what = f"{name} ({type(norm).__name__}) has inputs (N, {', '.join(map(str, shape[1:]))})"
    num_groups = getattr(norm, "num_groups", None)
    if isinstance(norm, _InstanceNorm) and positions == 1:
        raise SettingError(
            f"norm=instancenorm: {what}: one position, which it turns to 0. Choose larger images, {OTHER_NORM}."
        )
    if num_groups is not None and shape[1] // num_groups * positions == 1:
        method = "batch_channel_norm" if isinstance(norm, BatchChannelNorm2d) else "groupnorm"
        raise SettingError(
            f"{method}.num_groups={num_groups}: {what}: a group has one value, which it turns to 0. Choose fewer "
            f"groups, larger images, {OTHER_NORM}."
        )
    if not isinstance(norm, (_BatchNorm, *SYNC_BATCH_NORMS)) or getattr(norm, "estimate", False):
        return
    devices = train["num_devices"]
    images = train["global_batch_size"] // (train["accumulation_steps"] * devices)
    setting = f"train.global_batch_size={train['global_batch_size']}"
    for key in ("accumulation_steps", "num_devices"):
        setting += f" with train.{key}={train[key]}" if train[key] > 1 else ""
    remedy = f"train.global_batch_size={2 * train['accumulation_steps'] * devices} or more"
    if isinstance(norm, SYNC_BATCH_NORMS):
        images, remedy = images * devices, f"train.global_batch_size={2 * train['accumulation_steps']} or more"
    elif isinstance(norm, tuple(GHOST_BATCH_NORMS.values())) and images > 1:
        sizes = range(norm.ghost_batch_size + 1, images + 1)
        right = next((size for size in sizes if min(ghost_batch_sizes(images, size)) > 1), images)
        images = min(ghost_batch_sizes(images, norm.ghost_batch_size))
        setting = f"ghost_batchnorm.ghost_batch_size={norm.ghost_batch_size}"
        remedy = f"ghost_batchnorm.ghost_batch_size={right}"
    if images * positions == 1:
        raise SettingError(
            f"{setting}: {what}: of one image that is one value a channel, which batch norm cannot normalize. Choose "
            f"{remedy}, larger images, {OTHER_NORM}."
        )
