"""Norms of the units of a parameter: its output filters or rows."""

from __future__ import annotations

import torch
from torch import Tensor


def unitwise_norm(tensor: Tensor) -> Tensor:
    """The L2 norm of each unit of a parameter or a gradient, shaped to broadcast against it.

    A scalar or a vector is one unit and gives a 0-dim tensor; so does a tensor with at most one dimension above 1, such
    as a gain of shape (C, 1, 1, 1), as in the authors' code. In any other tensor each `tensor[i]` is a unit, an output
    filter or an output row, and the result has shape (out, 1, ..., 1). Norms of fp16 and bf16 tensors are fp32.

    >>> import torch
    >>> from runner.methods import unitwise_norm
    >>> unitwise_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])), unitwise_norm(torch.tensor([3.0, 4.0]))
    (tensor([[5.],
            [2.]]), tensor(5.))
    """
    dim = None if is_one_unit(tensor) else tuple(range(1, tensor.ndim))
    return torch.linalg.vector_norm(tensor, dim=dim, keepdim=dim is not None, dtype=norm_dtype(tensor))


def is_one_unit(tensor: Tensor) -> bool:
    """Whether `unitwise_norm` takes the whole tensor as one unit."""
    return tensor.ndim < 2 or sum(size != 1 for size in tensor.shape) <= 1


def norm_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of the norms of `tensor`."""
    return torch.promote_types(tensor.dtype, torch.float32)
