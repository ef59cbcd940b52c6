"""Replacing every batch norm of a model by another layer: what the methods that do so share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.layers.norm_act import norm_class
from runner.layers.surgery import nothing_to_change, refuse_modules, replace_modules
from runner.layers.sync_batch_norm import SYNC_BATCH_NORMS
from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS

PLAIN_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BATCH_NORMS = (*PLAIN_BATCH_NORMS, *GHOST_BATCH_NORMS.values(), *SYNC_BATCH_NORMS)


def batch_norms(
    model: nn.Module, outcome: str, kinds: tuple[type[_BatchNorm], ...] = BATCH_NORMS
) -> dict[str, _BatchNorm]:
    """The batch norms of `model` by name; a shared one appears once.

    Raises ValueError if the class of one is not in `kinds`. `outcome` completes the message: what becomes of those that
    are, as in "become group norms".

    >>> from torch import nn
    >>> from runner.methods.norm_replacement import batch_norms
    >>> list(batch_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "become group norms"))
    ['1']
    """
    refuse_modules(
        model,
        lambda module: isinstance(module, _BatchNorm) and norm_class(module) not in kinds,
        f"only {', '.join(kind.__name__ for kind in kinds)} {outcome}: a lazy layer needs a first forward pass, "
        "another subclass may compute more than batch norm",
    )
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def check_num_groups(num_groups: int, norms: Mapping[str, _BatchNorm]) -> None:
    """Raise a ValueError, with the divisors to choose from, if `num_groups` does not divide the features of a layer."""
    for name, norm in norms.items():
        if norm.num_features % num_groups:
            divisors = [str(n) for n in range(1, norm.num_features + 1) if norm.num_features % n == 0]
            raise ValueError(
                f"num_groups={num_groups} does not divide the {norm.num_features} features of "
                f"{name or 'the model'}; its divisors are {', '.join(divisors)}"
            )


def replace_batch_norms(
    model: nn.Module, norms: Mapping[str, _BatchNorm], make: Callable[[_BatchNorm], nn.Module], *, is_converted: bool
) -> int:
    """Replace each of `norms`, which `batch_norms` returned, by `make(norm)`; return their number.

    The new layer takes over what it shares with the old one by name; see `replace_modules`. Raises ValueError if the
    model itself is a batch norm, or if there is none, unless the model `is_converted` already: then it returns 0.
    """
    if not norms and not is_converted:
        raise nothing_to_change(model, "batch norm (nn.BatchNorm1d, 2d, 3d)")
    to_replace = set(norms.values())

    def make_and_mark(norm: _BatchNorm) -> nn.Module:
        new = make(norm)
        if was_trained(norm):
            new.replaces_trained_norm = True  # a later method can no longer see it
        return new

    return replace_modules(model, lambda module: module in to_replace, make_and_mark)


def placement_of(norm: _BatchNorm) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of the norm's parameters, else of its statistics, else the defaults."""
    tensors: list[Tensor | None] = [norm.weight, norm.running_mean]
    like = next((tensor for tensor in tensors if tensor is not None), torch.empty(0))
    return like.device, like.dtype


def was_trained(module: nn.Module) -> bool:
    """Whether `module` is a batch norm that holds statistics of data, or replaces one.

    `num_batches_tracked` cannot tell, since old weights lack it. On the meta device the answer is no.
    """
    mean = module.running_mean if isinstance(module, _BatchNorm) else None
    has_statistics = mean is not None and not mean.is_meta and bool(mean.any())
    return has_statistics or getattr(module, "replaces_trained_norm", False)
