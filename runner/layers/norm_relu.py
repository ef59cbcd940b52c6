"""A normalization layer, the sum with a shortcut and a ReLU, as one operation where the layer offers it.

Such a layer has `forward_relu(x, residual=None)`, which gives relu(norm(x)) or relu(norm(x) + residual) in training.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from runner.layers.triton_kernels import is_eager


def norm_relu(norm: nn.Module, relu: nn.Module, x: Tensor) -> Tensor:
    """`relu(norm(x))`, as one operation if `can_fuse`."""
    return norm.forward_relu(x) if can_fuse(x, relu, norm) else relu(norm(x))


def can_fuse(x: Tensor, relu: nn.Module, *norms: nn.Module) -> bool:
    """Whether calls of `forward_relu` may stand for calls of these modules.

    Not in evaluation, where a module has a hook, a compiled or another `forward` of its own, and under a compiler or a
    tracer, which record the modules themselves.
    """
    return (
        all(hasattr(norm, "forward_relu") and norm.training for norm in norms)
        and type(relu) is nn.ReLU
        and isinstance(x, Tensor)
        and is_eager()
        and not _has_any_global_hook()
        and not any(map(_is_watched, (relu, *norms)))
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of `module` does more than its class's `forward`."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in vars(module)
    )
