"""The base of convolutions with standardized weights, and a cache of these weights for an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from runner.layers.tracing import leaf_call, not_scriptable
from runner.layers.triton_kernels import import_kernels, is_dense, is_eager, is_plain_cuda


class StandardizedConv:
    """A base, before a torch convolution, of a class that defines `standardized_weight`."""

    _weight_of_evaluation: Tensor | None = None  # set and removed by `cached_standardized_weights` alone

    def standardized_weight(self) -> Tensor:
        """The weight the convolution uses, of the shape of `weight`."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        """Without the cached weight, whose context a copy or pickle outlives."""
        return {key: value for key, value in self.__dict__.items() if key != "_weight_of_evaluation"}

    def __prepare_scriptable__(self) -> nn.Module:
        raise not_scriptable(self, "fold_weight_standardization(model) first turns it into a plain convolution")

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return leaf_call(self, x)
        weight = self._weight_of_evaluation
        if weight is None or torch.is_grad_enabled():
            weight = self.standardized_weight()
        return self._conv_forward(x, weight, self.bias)


@contextmanager
def cached_standardized_weights(model: nn.Module) -> Iterator[None]:
    """Compute the standardized weights of `model` once in this context, for forwards without gradients.

    For an evaluation over many batches. A longer cache could become stale unnoticed, since fused optimizers and writes
    through `.data` do not change a tensor's version. The end of the context standardizes the weights once more, and
    raises RuntimeError if they were changed inside.

    >>> import torch
    >>> from runner.methods import StdConv2d, cached_standardized_weights
    >>> conv = StdConv2d(3, 8, 3)
    >>> images = torch.randn(4, 3, 9, 9)
    >>> with torch.no_grad(), cached_standardized_weights(conv):
    ...     outputs = [conv(image[None]) for image in images]  # standardizes once
    >>> torch.allclose(torch.cat(outputs), conv(images), atol=1e-5)
    True
    """
    layers = [module for module in model.modules() if isinstance(module, StandardizedConv)]
    cached = []
    try:
        with torch.no_grad(), _without_autocast():
            for layer in layers:
                layer._weight_of_evaluation = layer.standardized_weight()
                cached.append(layer._weight_of_evaluation)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("_weight_of_evaluation", None)
    with torch.no_grad(), _without_autocast():
        pairs = zip(layers, cached, strict=True)
        unwritten = [_same(layer.standardized_weight(), weight).to(cached[0].device) for layer, weight in pairs]
    if unwritten and not torch.stack(unwritten).all():
        raise RuntimeError(
            "the weights of the model were written inside cached_standardized_weights, and what it computed since then "
            "is of the weights before: leave the context first"
        )


def standardize_by_kernel(weight: Tensor, gain: Tensor | None, eps: float, formula: Callable) -> Tensor | None:
    """W_hat by `filter_kernels`, under autocast in its dtype; None if these do not support `weight`.

    `formula(weight, gain, eps)` is W_hat in operations that torch can differentiate repeatedly.
    """
    if not (is_plain_cuda(weight) and is_eager() and is_dense(weight) and weight.numel()):
        return None
    kernels = import_kernels("runner.layers.filter_kernels")
    if kernels is None:
        return None
    is_cast = weight.dtype == torch.float32 and torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if is_cast else weight.dtype
    return kernels.Standardize.apply(weight, gain, eps, dtype, formula)


def is_channels_last(weight: Tensor) -> bool:
    """Whether the input channels of a convolution's weight are last in memory."""
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


def _without_autocast() -> AbstractContextManager:
    """Weights keep their own dtype, inside autocast and outside."""
    return torch.autocast("cuda", enabled=False) if torch.is_autocast_enabled("cuda") else nullcontext()


def _same(one: Tensor, other: Tensor) -> Tensor:
    """Whether all values are equal, or both NaN, as a tensor: the host does not wait for a GPU."""
    return torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all()
