"""Layer norm (Ba et al. 2016, arXiv 1607.06450) in place of batch norm."""

from __future__ import annotations

from torch import Tensor, nn

from runner.methods.groupnorm import group_norm_for, has_group_norms
from runner.methods.method import Method
from runner.methods.norm_replacement import batch_norms, replace_batch_norms


def apply_layer_norm(model: nn.Module) -> int:
    """Replace the batch norms of `model` by layer norms, in place; the number of layers replaced is returned.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over all channels and positions
    of a sample (Ba et al. 2016, arXiv 1607.06450), and batch norm's weight and bias for each channel. That is group
    norm with one group, and `nn.GroupNorm` with `num_groups=1` is put in. It is not `nn.LayerNorm`, whose weights run
    over the positions too, nor the norm over the channels of each position that goes by the same name.

    Everything else is as in `apply_group_norm`: which batch norms are replaced, what stays and what vanishes from the
    state dict. A model whose norms all are layer norms already is left as it is, and 0 returned.

    Raises ValueError if there is no batch norm, if the model itself is one, and for lazy or other subclasses of batch
    norm. Nothing is changed then.

    >>> from torch import nn
    >>> from runner.methods import apply_layer_norm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> apply_layer_norm(model)
    1
    >>> type(model[1]).__name__, model[1].num_groups
    ('GroupNorm', 1)
    """
    return replace_batch_norms(
        model,
        batch_norms(model, "become layer norms"),
        lambda norm: group_norm_for(norm, 1),
        is_converted=lambda model: has_group_norms(model, 1),
    )


class LayerNormMethod(Method):
    """Layer norm in place of batch norm; see `apply_layer_norm`."""

    order = 10
    counted = "batch norms replaced"

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_layer_norm(model)
