"""Group norm (Wu & He 2018, arXiv 1803.08494) in place of batch norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.limits import check
from runner.layers import group_norm
from runner.methods.method import Method
from runner.methods.norm_replacement import batch_norms, check_num_groups, replace_batch_norms


def apply_group_norm(model: nn.Module, *, num_groups: int = 32) -> int:
    """Replace the batch norms of `model` by group norms, in place; the number of layers replaced is returned.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over the positions and the
    num_features / num_groups channels of a group, for each sample by itself; training and evaluation are alike. The new
    layers are `nn.GroupNorm`s whose output keeps the dtype of their input under autocast.

    Plain, ghost and synchronized batch norms are replaced. Parameter objects (`weight`, `bias`), their names and eps
    stay, so an optimizer made before goes on training the model. The keys `running_mean`, `running_var` and
    `num_batches_tracked` vanish from the state dict: a checkpoint of the unchanged model loads with strict=False only.
    A model whose norms all are group norms of `num_groups` groups already is left as it is, and 0 returned.

    Raises ValueError if there is no batch norm, if the model itself is one, if `num_groups` does not divide the
    features of a layer, and for lazy or other subclasses of batch norm. Nothing is changed then.

    >>> from torch import nn
    >>> from runner.methods import apply_group_norm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> apply_group_norm(model, num_groups=4)
    1
    >>> type(model[1]).__name__, model[1].num_groups
    ('GroupNorm', 4)
    """
    check("groupnorm", num_groups=num_groups)
    norms = batch_norms(model, "become group norms")
    check_num_groups("groupnorm", num_groups, norms)
    return replace_batch_norms(
        model,
        norms,
        lambda norm: group_norm_for(norm, num_groups),
        is_converted=lambda model: has_group_norms(model, num_groups),
    )


def group_norm_for(norm: _BatchNorm, num_groups: int) -> nn.GroupNorm:
    """A group norm of the size of `norm`, on the meta device: it is to take over the parameters."""
    return group_norm.GroupNorm(num_groups, norm.num_features, norm.eps, norm.affine, device="meta")


def has_group_norms(model: nn.Module, num_groups: int) -> bool:
    """Whether the model has group norms, all of them with `num_groups` groups."""
    return {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)} == {num_groups}


class GroupNormMethod(Method):
    """Group norm in place of batch norm; see `apply_group_norm`."""

    order = 10
    counted = "batch norms replaced"

    def __init__(self, *, num_groups: int = 32) -> None:
        check("groupnorm", num_groups=num_groups)
        self.num_groups = num_groups

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_group_norm(model, num_groups=self.num_groups)
