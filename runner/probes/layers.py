"""Choosing layers by name, index or depth."""

from __future__ import annotations

from torch import Tensor, nn

from runner.config.text import nearest
from runner.layers.execution_order import execution_order
from runner.layers.surgery import CONVOLUTIONS

SHORTCUTS = ("downsample", "shortcut")


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions of `model` outside shortcuts by name, in the order of registration.

    A shortcut is a module named `downsample` or `shortcut`: its convolutions do not count as a ResNet's layers.
    Raises ValueError if there is none.
    """
    by_name = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CONVOLUTIONS) and not set(name.split(".")) & set(SHORTCUTS)
    }
    if not by_name:
        raise ValueError(
            f"probe: looked for convolutions in a {type(model).__name__} and found none. Choose another model or probe."
        )
    return by_name


def layers_by_depth(model: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """The `convolutions` that `model(images)` runs, by name, ordered by their first run."""
    names = {module: name for name, module in convolutions(model).items()}
    return {names[module]: module for module in execution_order(model, names, images)}


def pick(model: nn.Module, layer: int | float | str, images: Tensor | None = None) -> tuple[str, nn.Module]:
    """The name and the module of `layer`.

    A string is the name of any module. An integer is an index into the convolutions outside shortcuts. A float from 0
    to 1 is a depth: of n convolutions the one with index round(depth * (n - 1)), so 0.5 is in the middle. Convolutions
    are in the order in which `model(images)` runs them, without `images` in that of registration, mostly the same.

    Raises ValueError for an unknown name and a number outside its range.
    """
    if isinstance(layer, str):
        modules = dict(model.named_modules())
        if layer not in modules or not layer:
            close = nearest(layer, modules, 3) or convolutions(model)
            raise ValueError(
                f"layer={layer}: a {type(model).__name__} has no module of that name. Choose from {', '.join(close)}."
            )
        return layer, modules[layer]
    layers = list((convolutions(model) if images is None else layers_by_depth(model, images)).items())
    if isinstance(layer, float):
        if not 0 <= layer <= 1:
            raise ValueError(f"layer={layer}: a depth is from 0.0 (first) to 1.0 (last). Give one, an index or a name.")
        return layers[round(layer * (len(layers) - 1))]
    if not -len(layers) <= layer < len(layers):
        raise ValueError(
            f"layer={layer}: a {type(model).__name__} has {len(layers)} convolutions outside shortcuts. "
            f"Choose from {-len(layers)} to {len(layers) - 1}."
        )
    return layers[layer]
