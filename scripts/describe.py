"""Every model with its size: `python scripts/describe.py [NAMES ...] [--image-size 224] [--num-classes 1000]`.

Parameters, multiply-adds and activations (the numbers that convolutions put out) for one image, counted on torch's meta
device: nothing is computed. Without --image-size each model is counted at the size it is published for in evaluation.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runner.models import MODELS, CifarResNet, DeepLabV3Plus, NFNet
from runner.tracking.console import format_count


@dataclass(frozen=True)
class Size:
    """What one image costs; `parameters` are those of the whole model."""

    image_size: int
    parameters: int
    multiply_adds: int
    activations: int


def describe(name: str, *, image_size: int | None = None, num_classes: int | None = None) -> Size:
    """The size of a model; without an image size at the published one, likewise the number of classes."""
    with torch.device("meta"):
        model = MODELS[name](**({} if num_classes is None else {"num_classes": num_classes})).eval()
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
    return 32 if isinstance(model, CifarResNet) else 224


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all without any")
    parser.add_argument("--image-size", type=int, help="pixels")
    parser.add_argument("--num-classes", type=int)
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in MODELS:
            parser.error(f"{name}: there is no such model; choose of {', '.join(MODELS)}")
    table = Table(box=None, pad_edge=False)
    for header in ("model", "image", "parameters", "multiply-adds", "activations"):
        table.add_column(header, justify="left" if header == "model" else "right")
    for name in arguments.names or MODELS:
        size = describe(name, image_size=arguments.image_size, num_classes=arguments.num_classes)
        counts = (size.parameters, size.multiply_adds, size.activations)
        table.add_row(name, f"{size.image_size} px", *(format_count(count) for count in counts))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
