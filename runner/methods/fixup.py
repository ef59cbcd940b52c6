"""Fixup initialization (Zhang et al. 2019, arXiv 1901.09321): residual networks that train without normalization.

Let L be the number of residual blocks and m that of the convolutions in a block's branch. The paper's rules:

1. the classifier and the last convolution of each branch start at 0;
2. all other layers start as usual (He), and those inside a branch are multiplied by L^(-1 / (2m - 2));
3. each branch has a scalar multiplier, at first 1, and there is a scalar bias, at first 0, before each convolution,
   linear and activation layer.

This module implements rules 1 and 2 exactly. He is N(0, 2 / fan-out), as in the authors' code, and biases start at 0.

It implements rule 3 only in part, since scalars replace batch norms: there is a bias after each convolution of a branch
and after the stem, before the activation, and the multiplier with a bias at the end of the branch. Biases between an
activation and the next convolution or classifier are missing. The shortcut has none; in the authors' code it shares one
with the branch.

The authors' code trains the scalars with a tenth of the learning rate; a run here does not. Weight standardization
undoes most of rules 1 and 2, since it gives every filter that is not 0 the same scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runner.layers.surgery import CONVOLUTIONS
from runner.methods.norm_replacement import BATCH_NORMS

_NUMBERED = re.compile(r"(bn|norm|conv)(\d+)")


class FixupBias(nn.Module):
    """y = x + fixup_bias: one learnable scalar, 0 at first, instead of a batch norm (arXiv 1901.09321).

    >>> import torch
    >>> from runner.methods import FixupBias
    >>> FixupBias()(torch.ones(3))
    tensor([1., 1., 1.], grad_fn=<AddBackward0>)
    """

    # With the names of batch norm's parameters the layer would take these over.

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.fixup_bias = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fixup_bias


class FixupScale(nn.Module):
    """y = fixup_scale * x + fixup_bias: two learnable scalars, at first 1 and 0, at the end of a residual branch.

    >>> import torch
    >>> from runner.methods import FixupScale
    >>> FixupScale()(torch.ones(3))
    tensor([1., 1., 1.], grad_fn=<AddBackward0>)
    """

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.fixup_scale = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.fixup_bias = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fixup_scale + self.fixup_bias


@dataclass(frozen=True)
class ResidualBranch:
    """The numbered layers of one block's branch, each kind in the order of its numbers, and its shortcut."""

    norms: tuple[nn.Module, ...]
    convolutions: tuple[nn.Module, ...]
    shortcut: nn.Module | None


def residual_branches(model: nn.Module, setting: str) -> list[ResidualBranch]:
    """The branch of every residual block of `model` that a batch norm ends.

    A residual block is a module with an attribute `downsample` or `shortcut` (which may be None), numbered convolutions
    (`conv1` ..) and numbered batch norms (`bn1` .. or `norm1` ..), with the last norm after the last convolution:
    torchvision's BasicBlock and Bottleneck, and the many ResNets of that form.

    Raises ValueError if there is none, and for a module with such an attribute but another shape. The message names
    `setting`, as in "skipinit".

    >>> from torchvision.models.resnet import Bottleneck
    >>> from runner.methods.fixup import residual_branches
    >>> [branch] = residual_branches(Bottleneck(64, 16), "skipinit")
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


@torch.no_grad()
def initialize_fixup(model: nn.Module, branches: Sequence[ResidualBranch], classifier: nn.Module) -> None:
    """Initialize all convolutions of `model`, from torch's global generator, and set their biases to 0.

    The last convolution of each of `branches` and the `classifier` become 0. Other linear layers do not change.
    """
    factors: dict[nn.Module, float] = {}
    for branch in branches:
        *inner, last = branch.convolutions
        factors |= dict.fromkeys(inner, _branch_factor(len(branches), len(branch.convolutions)))
        factors[last] = 0.0
    for module in model.modules():
        if module is not classifier and isinstance(module, CONVOLUTIONS):
            _draw(module, factors.get(module, 1.0))
    _draw(classifier, 0.0)


def _branch_factor(num_blocks: int, num_convolutions: int) -> float:
    """L^(-1 / (2m - 2)); undefined for m = 1, where no convolution needs it."""
    return num_blocks ** (-1 / (2 * num_convolutions - 2)) if num_convolutions > 1 else 0.0


def _draw(layer: nn.Module, factor: float) -> None:
    """Set the bias to 0 and the weight to `factor` times one drawn by He's rule."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if factor == 0:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu").mul_(factor)
