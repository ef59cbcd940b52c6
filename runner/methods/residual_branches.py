"""The residual branches of a model, found by the names and the order of a block's layers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from runner.layers.surgery import CONVOLUTIONS
from runner.methods.norm_replacement import BATCH_NORMS

_NUMBERED = re.compile(r"(bn|norm|conv)(\d+)")


@dataclass(frozen=True)
class ResidualBranch:
    """The numbered layers of one block's branch, each kind in the order of its numbers, and its shortcut."""

    norms: tuple[nn.Module, ...]
    convolutions: tuple[nn.Module, ...]
    shortcut: nn.Module | None


def residual_branches(model: nn.Module, setting: str) -> list[ResidualBranch]:
    """The branch of every residual block of `model` that a batch norm ends.

    A residual block is a module with an attribute `downsample` or `shortcut` (which may be None), numbered convolutions
    (`conv1` ..) and numbered batch norms (`bn1` .. or `norm1` ..), whose norm of the highest number stands after the
    convolution of the highest number: torchvision's BasicBlock and Bottleneck, and the many ResNets of that shape.

    Raises ValueError if there is none, and for a module with such an attribute but another shape. The message names
    `setting`, as in "none.skipinit".

    >>> from torchvision.models.resnet import Bottleneck
    >>> from runner.methods.residual_branches import residual_branches
    >>> [branch] = residual_branches(Bottleneck(64, 16), "none.skipinit")
    >>> len(branch.convolutions), len(branch.norms), branch.shortcut
    (3, 3, None)
    """
    branches = [
        _branch(name, module, setting)
        for name, module in model.named_modules()
        if hasattr(module, "downsample") or hasattr(module, "shortcut")
    ]
    if not branches:
        raise ValueError(
            f"{setting}=True: looked for residual blocks (modules with an attribute downsample or shortcut) in a "
            f"{type(model).__name__} and found none; set {setting}=False"
        )
    return branches


def _branch(name: str, block: nn.Module, setting: str) -> ResidualBranch:
    numbered = {"norm": [], "conv": []}
    for place, (child_name, child) in enumerate(block.named_children()):
        if match := _NUMBERED.fullmatch(child_name):
            kind = "conv" if match[1] == "conv" else "norm"
            numbered[kind].append((int(match[2]), place, child))
    norms, convolutions = (sorted(entries, key=lambda entry: entry[0]) for entries in numbered.values())
    is_known = norms and convolutions and type(norms[-1][2]) in BATCH_NORMS and norms[-1][1] > convolutions[-1][1]
    if not (is_known and all(isinstance(layer, CONVOLUTIONS) for _, _, layer in convolutions)):
        raise ValueError(
            f"{setting}=True: {name or 'the model'}, a {type(block).__name__}, looks like a residual block, but no "
            "numbered batch norm (bn1, norm1, ..) ends its branch, after the last numbered convolution (conv1, ..); "
            f"set {setting}=False"
        )
    shortcut = getattr(block, "downsample", None) or getattr(block, "shortcut", None)
    return ResidualBranch(
        norms=tuple(layer for *_, layer in norms),
        convolutions=tuple(layer for *_, layer in convolutions),
        shortcut=shortcut if isinstance(shortcut, nn.Module) else None,
    )
