"""Precise batch norm: statistics for evaluation, measured over many batches (Wu & Johnson 2021, arXiv 2105.07576)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.limits import check
from runner.layers.preserve_state import preserve_state
from runner.layers.surgery import nothing_to_change, refuse_modules
from runner.methods.method import Method


def estimate_batchnorm_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of the batch norms in `model` to those over `batches`; return the number of layers.

    Over batches B of the layer's input, with mean mu_B and biased variance var_B by channel (arXiv 2105.07576, sec. 3),

        running_mean = E[mu_B],    running_var = E[mu_B^2 + var_B] - E[mu_B]^2,

    where E weights each batch by its number of values: the mean and the variance of all values, accumulated in float64.
    A layer that runs several times in a forward pass gets the statistics over all its inputs.

    `batches` are inputs of the model, usually (B, C, H, W), on its device. In these passes batch norms (plain, ghost,
    synchronized; frozen ones too) use the statistics of the batch, and all else (dropout, stochastic depth) is in
    evaluation mode, without gradients. Only the running statistics of layers that ran change; after an error nothing.

    Raises ValueError if there is no batch norm with running statistics, no batch, or a layer that uses its running
    statistics in training too (batch-channel norm with estimate=True): it must keep those that it was trained with.

    >>> import torch
    >>> from torch import nn
    >>> from runner.methods import estimate_batchnorm_statistics
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> estimate_batchnorm_statistics(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])])
    1
    >>> model[0].running_mean, model[0].running_var
    (tensor([3.]), tensor([5.]))
    """
    moments = {layer: _Moments() for layer in _layers(model)}
    # the hooks would make a compiled model compile again, each time
    with preserve_state(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.eval()
        for layer in moments:
            layer.training = True
            layer.register_forward_pre_hook(moments[layer], with_kwargs=True)
        number = sum(1 for _ in map(model, batches))
    if number == 0:
        raise ValueError("batches: there is none to estimate the statistics of batch norm from; give one at least")
    measured = {layer: moment for layer, moment in moments.items() if moment.count}
    for layer, moment in measured.items():
        layer.running_mean.copy_(moment.mean)
        layer.running_var.copy_(moment.squares / moment.count)
    return len(measured)


class PreciseBatchNorm(Method):
    """`estimate_batchnorm_statistics` before each evaluation, over the first `num_batches` micro-batches of the epoch.

    A shorter epoch is used once. The images are augmented as in training, but not mixed.
    """

    capturable = True
    counted = "batch norms with measured statistics"

    def __init__(self, *, num_batches: int = 32) -> None:
        check("precise_batchnorm", num_batches=num_batches)
        self.num_batches = num_batches

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Return the number of layers whose statistics will be measured; no module changes."""
        return len(_layers(model))

    def before_evaluation(self, model: nn.Module, train_images: Callable[[], Iterator[Tensor]]) -> None:
        estimate_batchnorm_statistics(model, islice(train_images(), self.num_batches))


class _Moments:
    """A forward pre-hook that accumulates the number of values, their mean and squared deviations by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = next(iter((*args, *kwargs.values())))
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        var, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
        added = x.numel() // x.shape[1]
        total = self.count + added
        # the update of Chan et al. (1979) avoids the difference of large numbers in E[x^2] - E[x]^2
        difference = mean.double() - self.mean
        self.mean = self.mean + difference * (added / total)
        self.squares = self.squares + var.double() * added + difference**2 * (self.count * added / total)
        self.count = total


def _layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of `model` with running statistics. Raises ValueError if one uses them in training."""
    refuse_modules(
        model,
        lambda module: getattr(module, "estimate", False) is True,
        "it normalizes by its running statistics in training too (estimate=True), so they must not be measured anew; "
        "set estimate=False, or leave precise batch norm out",
    )
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    layers = [layer for layer in layers if layer.running_mean is not None]
    if not layers:
        raise nothing_to_change(model, "batch norm with running statistics (nn.BatchNorm1d, 2d, 3d)")
    return layers
