"""What a model costs for one image, counted on torch's meta device, where nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runner.models import CifarResNet, DeepLabV3Plus, NFNet


@dataclass(frozen=True)
class Size:
    """Parameters of the whole model; multiply-adds and activations (outputs of its convolutions) of one image."""

    image_size: int
    parameters: int
    multiply_adds: int
    activations: int


def measure_size(
    build: Callable[..., nn.Module], *, image_size: int | None = None, num_classes: int | None = None
) -> Size:
    """The size of the model of `build`; without an image size at the published one, likewise the number of classes."""
    with torch.device("meta"):
        model = build(**({} if num_classes is None else {"num_classes": num_classes})).eval()
        if image_size is None:
            image_size = _published_size(model)
        activations = 0

        def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            nonlocal activations
            activations += output.numel()

        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, image_size, image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(image_size, parameters, counter.get_total_flops() // 2, activations)


def _published_size(model: nn.Module) -> int:
    if isinstance(model, NFNet):
        return model.variant.test_size
    if isinstance(model, DeepLabV3Plus):
        return 512
    of_timm = getattr(model, "default_cfg", None) or {}
    return 32 if isinstance(model, CifarResNet) else of_timm.get("input_size", (224,))[-1]
