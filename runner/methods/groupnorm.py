"""Group norm (Wu & He 2018, arXiv 1803.08494) in place of batch norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.limits import check
from runner.methods.ghost_batchnorm import GHOST_BATCH_NORMS
from runner.methods.method import Method
from runner.surgery import nothing_to_change, refuse_modules, replace_modules

_REPLACED = (*GHOST_BATCH_NORMS, *GHOST_BATCH_NORMS.values(), nn.SyncBatchNorm)


def apply_group_norm(model: nn.Module, *, num_groups: int = 32) -> int:
    """Replace the batch norms of `model` by group norms, in place; the number of layers replaced is returned.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over the positions and the
    num_features / num_groups channels of a group, for each sample by itself; training and evaluation are alike.

    Plain, ghost and synchronized batch norms are replaced. Parameter objects (`weight`, `bias`), their names and eps
    stay, so an optimizer made before goes on training the model. The keys `running_mean`, `running_var` and
    `num_batches_tracked` vanish from the state dict: a checkpoint of the unchanged model loads with strict=False only.
    A model whose norms all are group norms of `num_groups` groups already is left as it is, and 0 returned.

    Raises ValueError if there is no batch norm, if the model itself is one, if `num_groups` does not divide the
    features of a layer, and for lazy or other subclasses of batch norm. Nothing is changed then.
    """
    check("groupnorm", num_groups=num_groups)
    refuse_modules(
        model,
        lambda module: isinstance(module, _BatchNorm) and type(module) not in _REPLACED,
        "only nn.BatchNorm1d, 2d, 3d, nn.SyncBatchNorm and ghost batch norms become group norms: a lazy layer needs a "
        "first forward pass, another subclass may compute more than batch norm",
    )
    for name, module in model.named_modules():
        if type(module) in _REPLACED and module.num_features % num_groups:
            divisors = [str(n) for n in range(1, module.num_features + 1) if module.num_features % n == 0]
            raise ValueError(
                f"groupnorm.num_groups={num_groups} does not divide the {module.num_features} features of "
                f"{name or 'the model'}; its divisors are {', '.join(divisors)}"
            )

    def make(batch_norm: _BatchNorm) -> nn.GroupNorm:
        # Nothing is allocated on the meta device: the parameters are carried over.
        return nn.GroupNorm(num_groups, batch_norm.num_features, batch_norm.eps, batch_norm.affine, device="meta")

    replaced = replace_modules(model, _REPLACED, make)
    present = [module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)]
    if not replaced and set(present) != {num_groups}:
        raise nothing_to_change(model, "batch norm (nn.BatchNorm1d, 2d, 3d)")
    return replaced


class GroupNorm(Method):
    """Group norm in place of batch norm; see `apply_group_norm`."""

    order = 10
    counted = "batch norms replaced"

    def __init__(self, *, num_groups: int = 32) -> None:
        check("groupnorm", num_groups=num_groups)
        self.num_groups = num_groups

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_group_norm(model, num_groups=self.num_groups)
