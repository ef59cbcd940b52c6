"""timm's `BatchNormAct2d`: batch norm, drop layer and activation in one module (EfficientNet, ResNetV2, ...)."""

from __future__ import annotations

import sys

from torch import Tensor, nn
from torch.fx import Proxy


def is_norm_act(module: nn.Module) -> bool:
    """Whether `module` is a `timm.layers.BatchNormAct2d`, which computes act(drop(batch_norm(x)))."""
    layers = sys.modules.get("timm.layers")  # without timm no module can be one
    return layers is not None and type(module) is layers.BatchNormAct2d


def norm_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module`; `nn.BatchNorm2d` for timm's batch norm with an activation."""
    return nn.BatchNorm2d if is_norm_act(module) else type(module)


def keep_activation(old: nn.Module, new: nn.Module) -> None:
    """Let `new`, which replaces a norm with an activation, compute `act(drop(new(x)))`. Other modules do not change.

    A forward hook does so: names in the state dict stay, and `new` is of no class of its own.
    """
    if is_norm_act(old):
        new.register_forward_hook(activate, prepend=True)  # a user's hook has the activation in its output, as before
    if has_activation(old):
        new.drop, new.act = old.drop, old.act


def has_activation(norm: nn.Module) -> bool:
    """Whether `norm` took the place of a `BatchNormAct2d`."""
    return activate in norm._forward_hooks.values()


def drop_activation_hook(module: nn.Module) -> None:
    """Remove the hook from a module whose own forward computes the activation."""
    for key in [key for key, hook in module._forward_hooks.items() if hook is activate]:
        del module._forward_hooks[key]


def activate(norm: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """The hook. A node of torch.fx that calls `norm` calls the hook too."""
    is_node = isinstance(out, Proxy) and out.node.op == "call_module"
    if is_node and out.tracer.root.get_submodule(out.node.target) is norm:
        return out
    return norm.act(norm.drop(out))
