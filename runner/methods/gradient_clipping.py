"""Gradient clipping by the global norm (Pascanu et al. 2013, arXiv 1211.5063) and by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from runner.config.limits import check
from runner.layers.surgery import nothing_to_change
from runner.methods.method import Method

CACHED_ELEMENTS = 2_000_000  # 8 MB in float32


class _Clipping(Method):
    """The base of both: they clip every parameter, the classifier's too."""

    capturable = True
    counted = "parameter tensors to clip"

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Return the number of parameter tensors that will be clipped; no module changes."""
        number = sum(parameter.requires_grad for parameter in model.parameters())
        if number == 0:
            raise nothing_to_change(model, "parameters to train")
        return number


class ClipByNorm(_Clipping):
    """Clips the gradient g of all parameters together by its L2 norm (Pascanu et al. 2013, arXiv 1211.5063):

        g <- g * min(1, max_norm / (|g| + 1e-6)).

    If the norm is not finite every gradient becomes NaN: division by an infinite norm would make most of them 0 and
    hide the divergence.

    Metrics: "norm" before clipping, and "clipped_share", 1 if the step was clipped and else 0.

    >>> import torch
    >>> from torch import nn
    >>> from runner.methods.gradient_clipping import ClipByNorm
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.grad = torch.tensor([[3.0, 4.0]])
    >>> ClipByNorm(max_norm=1.0).transform_gradients(model)
    {'norm': tensor(5.), 'clipped_share': tensor(1.)}
    >>> model.weight.grad
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, *, max_norm: float = 1.0) -> None:
        check("clip_by_norm", max_norm=max_norm)
        self.max_norm = max_norm

    @torch.no_grad()
    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        norm = nn.utils.get_total_norm(_gradients(model))
        nn.utils.clip_grads_with_norm_(model.parameters(), self.max_norm, torch.where(norm.isfinite(), norm, torch.nan))
        return {"norm": norm, "clipped_share": (norm > self.max_norm).float()}


class ClipByValue(_Clipping):
    """Clips each element of the gradient: g <- min(max(g, -max_value), max_value).

    An element that is not finite becomes NaN. Metric: "clipped_share", the share of the elements that were clipped.

    >>> import torch
    >>> from torch import nn
    >>> from runner.methods.gradient_clipping import ClipByValue
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.grad = torch.tensor([[0.05, -4.0]])
    >>> ClipByValue(max_value=0.1).transform_gradients(model)
    {'clipped_share': tensor(0.5000)}
    >>> model.weight.grad
    tensor([[ 0.0500, -0.1000]])
    """

    def __init__(self, *, max_value: float = 0.1) -> None:
        check("clip_by_value", max_value=max_value)
        self.max_value = max_value

    @torch.no_grad()
    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        gradients = _gradients(model)
        if not gradients:
            return {"clipped_share": torch.zeros(())}
        numbers = [self._clip(part) for part in cache_sized_parts(gradients)]
        return {"clipped_share": torch.cat(numbers).sum() / sum(gradient.numel() for gradient in gradients)}

    def _clip(self, gradients: list[Tensor]) -> Tensor:
        """Clip in place; return the number of elements clipped in each gradient."""
        clipped = torch._foreach_clamp_min(gradients, -self.max_value)
        torch._foreach_clamp_max_(clipped, self.max_value)
        torch._foreach_sub_(gradients, clipped)  # what is cut off; inf or NaN where a gradient was that
        dtype = reduce(torch.promote_types, {gradient.dtype for gradient in gradients}, torch.float32)
        numbers = torch.stack(torch._foreach_norm(gradients, 0, dtype=dtype))
        torch._foreach_mul_(gradients, 0.0)  # 0; NaN where a gradient was not finite
        torch._foreach_add_(gradients, clipped)
        return numbers


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def cache_sized_parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Split `tensors`, on a CPU, into lists of about `CACHED_ELEMENTS` elements, which several passes find in cache.

    On another device there is one list.

    >>> import torch
    >>> from runner.methods.gradient_clipping import cache_sized_parts
    >>> [len(part) for part in cache_sized_parts([torch.empty(1500, 1000)] * 5)]
    [2, 2, 1]
    """
    part: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        part.append(tensor)
        elements += tensor.numel()
        if elements > CACHED_ELEMENTS and tensor.is_cpu:
            yield part
            part, elements = [], 0
    if part:
        yield part
