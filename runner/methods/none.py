"""Batch norm removed: the unnormalized nets of Bjorck et al. 2018 (arXiv 1806.02375), plain, with SkipInit or Fixup."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.layers.classifier import find_classifier
from runner.methods.fixup import FixupBias, FixupScale, initialize_fixup, residual_branches
from runner.methods.method import Method
from runner.methods.norm_replacement import batch_norms, placement_of, replace_batch_norms


class SkipInit(nn.Module):
    """y = skipinit_gain * x: one learnable scalar, 0 at first, at the end of a residual branch (arXiv 2002.10444).

    >>> import torch
    >>> from runner.methods import SkipInit
    >>> SkipInit()(torch.ones(3))
    tensor([0., 0., 0.], grad_fn=<MulBackward0>)
    """

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.skipinit_gain = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.skipinit_gain


class RemovedNorm(nn.Identity):
    """The identity where a batch norm was."""


def remove_batchnorm(model: nn.Module, *, skipinit: bool = False, fixup: bool = False) -> int:
    """Replace the batch norms of `model` by the identity, in place; return how many were replaced.

    With `skipinit` the last batch norm of each residual branch becomes a learnable scalar, 0 at first, so that each
    block starts as its shortcut (De & Smith 2020, arXiv 2002.10444). `residual_branches` says what counts as one.

    With `fixup` the model is *initialized again* for training without norms (Zhang et al. 2019, arXiv 1901.09321): with
    L blocks of m convolutions in the branch, the last convolution of each branch and the classifier start at 0, the
    other convolutions are drawn by He's rule, N(0, 2 / fan-out), from torch's global generator, and those inside
    branches are multiplied by L^(-1 / (2m - 2)). The last norm of a branch becomes a scalar multiplier with a scalar
    bias (`FixupScale`), each other norm a scalar bias (`FixupBias`), and a shortcut's norm the identity. The paper
    has biases at more places: before each convolution and before the classifier.

    The keys of the batch norms vanish from the state dict, and their parameters from the model. An optimizer made
    before does not train the new scalars: make it afterwards, or add them as a parameter group. A model that this
    function changed in the same way before stays as it is, and the function returns 0.

    Raises ValueError, and changes nothing, if there is no batch norm, if the model itself is one, for lazy or other
    subclasses of batch norm, and for `skipinit` with `fixup`; with either if there is no residual block, or one whose
    last norm is unclear; with `fixup` if the classifier is unclear.

    >>> from torchvision.models.resnet import BasicBlock
    >>> from runner.methods import remove_batchnorm
    >>> block = BasicBlock(8, 8)
    >>> remove_batchnorm(block, skipinit=True)
    2
    >>> block.bn1, block.bn2
    (RemovedNorm(), SkipInit())
    """
    if skipinit and fixup:
        raise ValueError("fixup=True: it takes the place of skipinit=True; set one of the two to False")
    norms = batch_norms(model, "are removed")
    setting = "skipinit" if skipinit else "fixup" if fixup else None
    branches = residual_branches(model, setting) if setting and norms else []
    last_norms = {branch.norms[-1] for branch in branches}
    in_shortcuts = {module for branch in branches if branch.shortcut for module in branch.shortcut.modules()}
    classifier = None
    if norms and fixup:
        classifier = find_classifier(model, setting="fixup=True: ", remedy="set fixup=False")

    def make(norm: _BatchNorm) -> nn.Module:
        if norm in last_norms:
            return (FixupScale if fixup else SkipInit)(*placement_of(norm))
        if fixup and norm not in in_shortcuts:
            return FixupBias(*placement_of(norm))
        return RemovedNorm()

    treated = SkipInit if skipinit else FixupScale if fixup else (RemovedNorm, SkipInit, FixupScale)
    removed = replace_batch_norms(
        model, norms, make, is_converted=any(isinstance(module, treated) for module in model.modules())
    )
    if classifier is not None:
        initialize_fixup(model, branches, classifier)
    return removed


class NoNormalization(Method):
    """No normalization at all; see `remove_batchnorm`."""

    order = 10
    capturable = True
    counted = "batch norms removed"

    def __init__(self, *, skipinit: bool = False, fixup: bool = False) -> None:
        self.skipinit = skipinit
        self.fixup = fixup

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return remove_batchnorm(model, skipinit=self.skipinit, fixup=self.fixup)
