"""Replacing modules inside a model, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from runner.layers.norm_act import keep_activation, norm_class

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
Matches: TypeAlias = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[nn.Module], bool]

# Hooks that belong to a place in the model. Hooks on the state dict belong to the layer and go with it.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def replace_modules(model: nn.Module, matches: Matches, make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace every module that `matches` by `make(module)`; return how many modules were replaced.

    `matches` is a predicate, or one or several types; a subclass of these does not match, since it may compute
    something else, but for timm's BatchNormAct2d, which matches as `nn.BatchNorm2d` and keeps its activation. A module
    with several names is replaced once, stays shared and counts once. `make` decides about modules inside a matching
    one.

    `carry_over` hands the old module's parameters, buffers and hooks to the new one, so an optimizer made before goes
    on training them. `make` may therefore build on the meta device if the old module has every parameter and buffer of
    the new one. A new module that contains the old one takes nothing over.

    Raises ValueError if the model itself matches: a module can only be replaced inside a parent.
    """
    is_match = predicate(matches)
    if is_match(model):
        raise ValueError(
            f"the model itself is a {type(model).__name__}, and a module can only be replaced inside a parent: "
            f"wrap it, e.g. nn.Sequential(model)"
        )
    replacements: dict[nn.Module, nn.Module] = {}
    for parent, name, old in _places(model, is_match):
        if old not in replacements:
            new = make(old)
            if all(inner is not old for inner in new.modules()):
                carry_over(old, new)
            replacements[old] = new
        parent._modules[name] = replacements[old]
    return len(replacements)


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Give `new` the parameters and buffers of `old` that both have by name, its training flag and its hooks.

    The objects stay the same: device, dtype, `requires_grad` and `.grad` are kept, and a hook's handle still removes
    it. A parameter or buffer that is None in `old` becomes None.
    """
    for name in new._parameters.keys() & old._parameters.keys():
        new._parameters[name] = old._parameters[name]
    for name in new._buffers.keys() & old._buffers.keys():
        new._buffers[name] = old._buffers[name]
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))
    keep_activation(old, new)
    new.train(old.training)


def refuse_modules(model: nn.Module, matches: Matches, reason: str) -> None:
    """Raise a ValueError with the name and the class of the first module that `matches`, followed by `reason`."""
    is_match = predicate(matches)
    for name, module in model.named_modules():
        if is_match(module):
            raise ValueError(f"{name or 'the model'} is a {type(module).__name__}: {reason}")


def nothing_to_change(model: nn.Module, sought: str) -> ValueError:
    """The error of a method that finds nothing to change in `model`, where it looked for `sought`."""
    return ValueError(f"nothing to change: looked for {sought} in a {type(model).__name__} and found none")


def predicate(matches: Matches) -> Callable[[nn.Module], bool]:
    """`matches` as a function of a module."""
    if isinstance(matches, type):
        return lambda module: norm_class(module) is matches
    if isinstance(matches, tuple):
        return lambda module: norm_class(module) in matches
    return matches


def _places(model: nn.Module, is_match: Callable[[nn.Module], bool]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every (parent, name, module) of a matching module that is not inside another."""
    places = []
    visited = {model}
    parents = [model]
    while parents:
        parent = parents.pop(0)
        for name, child in parent._modules.items():
            if child is None:
                continue
            if is_match(child):
                places.append((parent, name, child))
            elif child not in visited:
                visited.add(child)
                parents.append(child)
    return places
