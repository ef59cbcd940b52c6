"""How the layers here appear to torch.fx and torch.jit.script."""

from __future__ import annotations

from torch import nn
from torch.fx import Proxy


def leaf_call(layer: nn.Module, x: Proxy, *args: object, **kwargs: object) -> Proxy:
    """Record a call of `layer` as one node, as torch.fx does for torch's own layers.

    `layer.forward` calls this where x is a Proxy, so the traced model computes what the layer does, in training too.

    >>> import torch
    >>> from torch import nn
    >>> from runner.methods import StdConv2d
    >>> print(*(node.op for node in torch.fx.symbolic_trace(nn.Sequential(StdConv2d(3, 8, 3))).graph.nodes))
    placeholder call_module output
    """
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(layer), (x, *args), kwargs)


def not_scriptable(layer: nn.Module, remedy: str) -> ValueError:
    """The error of `layer.__prepare_scriptable__`, which torch.jit.script calls first."""
    return ValueError(f"torch.jit.script does not compile a {type(layer).__name__}: {remedy}")
