"""Training some of the parameters alone, as those of batch norm (Frankle et al. 2020, arXiv 2003.00152)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runner.layers.classifier import find_classifier
from runner.layers.surgery import CONVOLUTIONS, NORM_LAYERS, nothing_to_change
from runner.methods.method import Method

WEIGHTS_A_FILTER = 2  # as batch norm has a weight and a bias for each


class TrainedParameters(Method):
    """Trains the parameters that `trained` names; the others stay as initialized, without gradient or weight decay.

    "norm": the weights and biases of normalization layers. "classifier": those of the layer that gives the logits.
    "norm_and_classifier": both. "random", which the paper compares with "norm": two weights of each filter of every
    convolution, drawn with the run's seed; as many as the parameters of the batch norms, where one follows each
    convolution. Their gradients are masked after the backward pass, so the metric `gradient_norm` is that of all the
    convolutions' weights, and weight decay must be 0.
    """

    order = 45  # after surgery, before methods that count the parameters with a gradient
    capturable = True
    counted = "parameters to train"

    def __init__(self, trained: str) -> None:
        self.trained = trained
        self.masks: dict[str, Tensor] = {}

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Set `requires_grad` of each parameter; return how many numbers are trained."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        chosen = [parameter for parameter in self._chosen(model) if id(parameter) in names]
        if not chosen:
            raise nothing_to_change(model, f"parameters to train ({self.trained})")
        model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        if self.trained != "random":
            return sum(parameter.numel() for parameter in chosen)
        generator = torch.Generator().manual_seed(seed)
        self.masks = {names[id(parameter)]: _mask(parameter, generator) for parameter in chosen}
        return sum(min(WEIGHTS_A_FILTER, parameter[0].numel()) * len(parameter) for parameter in chosen)

    def _chosen(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that are trained, at least in part, each once."""
        chosen: list[nn.Parameter] = []
        if self.trained in ("norm", "norm_and_classifier"):
            norms = [module for module in model.modules() if isinstance(module, NORM_LAYERS)]
            chosen += [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
        if self.trained in ("classifier", "norm_and_classifier"):
            chosen += find_classifier(model, remedy="choose train.trained_parameters=norm").parameters()
        if self.trained == "random":
            chosen += [module.weight for module in model.modules() if isinstance(module, CONVOLUTIONS)]
        return list({id(parameter): parameter for parameter in chosen}.values())

    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        """With "random", set the gradients of the other weights to 0."""
        for name, mask in self.masks.items():
            parameter = model.get_parameter(name)
            if parameter.grad is not None:
                self.masks[name] = mask = mask.to(parameter)
                parameter.grad.mul_(mask)
        return {}


def _mask(weight: Tensor, generator: torch.Generator) -> Tensor:
    """1 at `WEIGHTS_A_FILTER` random weights of each filter, else 0; drawn on the CPU, as on every device."""
    filters, fan_in = len(weight), weight[0].numel()
    if weight.is_meta:
        return torch.empty_like(weight)
    order = torch.rand(filters, fan_in, generator=generator, device="cpu").argsort(1)
    return (order < WEIGHTS_A_FILTER).float().view(weight.shape)
