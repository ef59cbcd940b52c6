"""Group norm (Wu & He 2018, arXiv 1803.08494) and layer norm (Ba et al. 2016, arXiv 1607.06450)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.limits import check
from runner.methods.method import Method
from runner.methods.norm_replacement import batch_norms, check_num_groups, replace_batch_norms


def group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`F.group_norm`, its output in the dtype of x.

    Autocast on CUDA computes group norm in float32 and, unlike batch norm, leaves the output there: every layer up to
    the next convolution would move twice the bytes.
    """
    return F.group_norm(x, num_groups, weight, bias, eps).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` whose output has the dtype of its input, under autocast on CUDA too; see `group_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def apply_group_norm(model: nn.Module, *, num_groups: int = 32) -> int:
    """Replace the batch norms of `model` by group norms, in place; return how many were replaced.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over the positions and the
    num_features / num_groups channels of a group, for each sample by itself, in training and in evaluation. The new
    layers are `nn.GroupNorm`s whose output keeps the dtype of their input under autocast.

    Plain, ghost and synchronized batch norms are replaced. They keep eps and the Parameter objects `weight` and `bias`,
    so an optimizer made before goes on training the model. The keys `running_mean`, `running_var` and
    `num_batches_tracked` vanish from the state dict: a checkpoint of the unchanged model loads with strict=False only.
    A model whose norms already are group norms of `num_groups` groups stays as it is, and the function returns 0.

    Raises ValueError, and changes nothing, if there is no batch norm, if the model itself is one, if `num_groups` does
    not divide the features of a layer, and for lazy or other subclasses of batch norm.

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
    check_num_groups(num_groups, norms)
    return _replace(model, norms, num_groups)


def apply_layer_norm(model: nn.Module) -> int:
    """Replace the batch norms of `model` by layer norms, in place; return how many were replaced.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over all channels and positions
    of a sample (Ba et al. 2016, arXiv 1607.06450), and batch norm's weight and bias for each channel. This is group
    norm with one group, an `nn.GroupNorm` with `num_groups=1`. It is not `nn.LayerNorm`, whose weights run over the
    positions too, nor the norm over the channels of each position that goes by the same name.

    See `apply_group_norm` for all else.

    >>> from torch import nn
    >>> from runner.methods import apply_layer_norm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> apply_layer_norm(model)
    1
    >>> type(model[1]).__name__, model[1].num_groups
    ('GroupNorm', 1)
    """
    return _replace(model, batch_norms(model, "become layer norms"), 1)


class GroupNormMethod(Method):
    """Group norm in place of batch norm; see `apply_group_norm`."""

    order = 10
    capturable = True
    counted = "batch norms replaced"

    def __init__(self, *, num_groups: int = 32) -> None:
        check("groupnorm", num_groups=num_groups)
        self.num_groups = num_groups

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_group_norm(model, num_groups=self.num_groups)


class LayerNormMethod(Method):
    """Layer norm in place of batch norm; see `apply_layer_norm`."""

    order = 10
    capturable = True
    counted = "batch norms replaced"

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_layer_norm(model)


def _replace(model: nn.Module, norms: dict[str, _BatchNorm], num_groups: int) -> int:
    return replace_batch_norms(
        model,
        norms,
        lambda norm: GroupNorm(num_groups, norm.num_features, norm.eps, norm.affine, device="meta"),
        is_converted={module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)}
        == {num_groups},
    )
