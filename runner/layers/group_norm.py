"""Group norm whose output has the dtype of its input."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
