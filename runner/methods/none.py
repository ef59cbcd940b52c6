"""Batch norm removed: the unnormalized nets of Bjorck et al. 2018 (arXiv 1806.02375), with or without SkipInit."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS
from runner.methods.method import Method
from runner.surgery import nothing_to_change, refuse_modules, replace_modules

_REMOVED = (*GHOST_BATCH_NORMS, *GHOST_BATCH_NORMS.values(), nn.SyncBatchNorm)
_NUMBERED = re.compile(r"(bn|norm|conv)(\d+)")


class SkipInit(nn.Module):
    """y = skipinit_gain * x: one learnable scalar, 0 at first, at the end of a residual branch (arXiv 2002.10444)."""

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.skipinit_gain = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.skipinit_gain


class RemovedNorm(nn.Identity):
    """The identity where a batch norm was."""


def remove_batchnorm(model: nn.Module, *, skipinit: bool = False) -> int:
    """Replace the batch norms of `model` by the identity, in place; the number of layers replaced is returned.

    With `skipinit` the last batch norm of each residual branch becomes a learnable scalar, 0 at first, so that each
    block starts as its shortcut (De & Smith 2020, arXiv 2002.10444). A residual block is a module with an attribute
    `downsample` or `shortcut` (which may be None) and numbered norms (`bn1` .. or `norm1` ..); the norm of the highest
    number is the last one, and must stand after the convolution of the highest number: torchvision's BasicBlock
    and Bottleneck, and the many ResNets of that shape.

    The keys of the batch norms vanish from the state dict, and their parameters from the model. An optimizer made
    before knows nothing of the new scalars `skipinit_gain`: make it afterwards, or add them as a parameter group.
    A model without batch norm that was treated before is left as it is, and 0 returned.

    Raises ValueError if there is no batch norm, if the model itself is one, and for lazy or other subclasses of batch
    norm, which may compute more; with `skipinit` also if there is no residual block, or one whose last norm cannot
    be told. Nothing is changed then.
    """
    refuse_modules(
        model,
        lambda module: isinstance(module, _BatchNorm) and type(module) not in _REMOVED,
        "only nn.BatchNorm1d, 2d, 3d, nn.SyncBatchNorm and ghost batch norms are removed: a lazy layer needs a first "
        "forward pass, another subclass may compute more than batch norm",
    )
    treated = SkipInit if skipinit else RemovedNorm
    if not any(type(module) in _REMOVED for module in model.modules()):
        if any(isinstance(module, treated) for module in model.modules()):
            return 0
        raise nothing_to_change(model, "batch norm (nn.BatchNorm1d, 2d, 3d)")
    last_norms = _last_norms(model) if skipinit else set()

    def make(norm: _BatchNorm) -> nn.Module:
        if norm not in last_norms:
            return RemovedNorm()
        like = next((t for t in (norm.weight, norm.running_mean) if t is not None), torch.empty(()))
        return SkipInit(like.device, like.dtype)

    return replace_modules(model, _REMOVED, make)


class NoNormalization(Method):
    """No normalization at all; see `remove_batchnorm`."""

    order = 10
    counted = "batch norms removed"

    def __init__(self, *, skipinit: bool = False) -> None:
        self.skipinit = skipinit

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return remove_batchnorm(model, skipinit=self.skipinit)


def _last_norms(model: nn.Module) -> set[nn.Module]:
    """The last batch norm of the branch of every residual block in `model`."""
    norms = set()
    for name, block in model.named_modules():
        if not (hasattr(block, "downsample") or hasattr(block, "shortcut")):
            continue
        numbered = {"norm": [], "conv": []}
        for place, (child_name, child) in enumerate(block.named_children()):
            if match := _NUMBERED.fullmatch(child_name):
                kind = "conv" if match[1] == "conv" else "norm"
                numbered[kind].append((int(match[2]), place, child))
        last_norm = max(numbered["norm"], default=None, key=lambda entry: entry[0])
        last_conv = max(numbered["conv"], default=None, key=lambda entry: entry[0])
        if last_norm is None or last_conv is None or last_norm[1] < last_conv[1] or type(last_norm[2]) not in _REMOVED:
            raise ValueError(
                f"none.skipinit=True: {name or 'the model'}, a {type(block).__name__}, looks like a residual block, "
                "but no numbered batch norm (bn1, norm1, ..) ends its branch, after the last numbered convolution; "
                "put a SkipInit at the end of the branch by hand, or set none.skipinit=False"
            )
        norms.add(last_norm[2])
    if not norms:
        raise ValueError(
            f"none.skipinit=True: looked for residual blocks (modules with an attribute downsample or shortcut) in a "
            f"{type(model).__name__} and found none; set none.skipinit=False"
        )
    return norms
