"""Residual blocks with a gate (`runner.layers.stochastic_depth.StochasticDepth`) on their branch.

A block changes its class in place, to one of the same name with one of the classes here as its first base.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner.layers import residual_blocks
from runner.layers.norm_relu import norm_relu
from runner.layers.preserve_state import preserve_state
from runner.layers.stochastic_depth import StochasticDepth, refuse_export
from runner.layers.tracing import leaf_call, not_scriptable

_BASIC_BLOCKS = (BasicBlock.forward, residual_blocks.BasicBlock.forward)
_BOTTLENECKS = (Bottleneck.forward, residual_blocks.Bottleneck.forward)


def is_torchvision_block(block_class: type[nn.Module]) -> bool:
    return block_class.forward in _BASIC_BLOCKS + _BOTTLENECKS


@cache
def gated_class(block_class: type[nn.Module]) -> type[nn.Module]:
    """The class of the same name and attributes whose `forward` calls the gate."""
    if block_class.forward in _BASIC_BLOCKS:
        forward = _GatedBasicBlock
    elif block_class.forward in _BOTTLENECKS:
        forward = _GatedBottleneck
    else:
        forward = _GatedContainer if issubclass(block_class, (nn.Sequential, nn.ModuleList)) else _GatedBlock
    names = {"__module__": block_class.__module__, "__qualname__": block_class.__qualname__}
    return type(block_class.__name__, (forward, block_class), names | {"_ungated_class": block_class})


def _new_gated_block(block_class: type[nn.Module]) -> nn.Module:
    return copyreg.__newobj__(gated_class(block_class))


class _Gated:
    """The first base of a gated class, which pickles and copies name by the block's original class."""

    stochastic_depth: StochasticDepth

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not self.training:
            return self._forward_evaluation(x, *args, **kwargs)
        if isinstance(x, Proxy):  # a trace of the block itself would fix its gate
            return leaf_call(self, x, *args, **kwargs)
        refuse_export()
        return self._forward_training(x, *args, **kwargs)

    def _forward_evaluation(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The block's output in evaluation, where no gate is drawn."""
        raise NotImplementedError

    # A subclass disables the compiler here but not for what is called: it breaks the graph once, at the gate, and
    # compiles the branch and the sum, each a function with one graph for each shape.
    def _forward_training(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The block's output in training: the shortcut alone where its gate is shut."""
        raise NotImplementedError

    def _ungated_forward(self, *args: object, **kwargs: object) -> Tensor:
        return super().forward(*args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        raise not_scriptable(self, "it has a gate of stochastic depth, which fold_stochastic_depth(model) takes out")

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        return _new_gated_block, (self._ungated_class,), *state


class _GatedTorchvisionBlock(_Gated):
    def _forward_evaluation(self, x: Tensor) -> Tensor:
        return self._sum(self.stochastic_depth(self.residual_branch, x), x)

    @torch.compiler.disable(recursive=False)
    def _forward_training(self, x: Tensor) -> Tensor:
        out = self.stochastic_depth(self.residual_branch, x)
        return self._shortcut(x) if out is None else self._sum(out, x)

    def _sum(self, out: Tensor, x: Tensor) -> Tensor:
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def _shortcut(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(identity.clone())  # the ReLU is in place and x belongs to the block before


class _GatedBasicBlock(_GatedTorchvisionBlock):
    def residual_branch(self, x: Tensor) -> Tensor:
        out = norm_relu(self.bn1, self.relu, self.conv1(x))
        return self.bn2(self.conv2(out))


class _GatedBottleneck(_GatedTorchvisionBlock):
    def residual_branch(self, x: Tensor) -> Tensor:
        out = norm_relu(self.bn1, self.relu, self.conv1(x))
        out = norm_relu(self.bn2, self.relu, self.conv2(out))
        return self.bn3(self.conv3(out))


class _GatedBlock(_Gated):
    """A block of another class, assumed to compute F(x) = x + f(x): the gate's branch is F(x) - x."""

    _keeps_shape: bool | None = None

    def _forward_evaluation(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if isinstance(x, Proxy):  # which does not know its shape
            return leaf_call(self, x, *args, **kwargs)
        out = self._ungated_forward(x, *args, **kwargs)
        if self._shape_of(out) != x.shape:
            return out
        return x + self.stochastic_depth(lambda x: out - x, x)

    @torch.compiler.disable(recursive=False)
    def _forward_training(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self._keeps_shape is None:
            self._keeps_shape = self._find_out_shape(x, *args, **kwargs) == x.shape
        if not self._keeps_shape:
            return self._ungated_forward(x, *args, **kwargs)
        change = self.stochastic_depth(lambda x: self._ungated_forward(x, *args, **kwargs) - x, x)
        return x if change is None else x + change

    @torch.compiler.disable
    def _find_out_shape(self, x: Tensor, *args: object, **kwargs: object) -> torch.Size:
        """The shape of F(x)."""
        with preserve_state(self), torch.no_grad():
            self.eval()
            return self._shape_of(self._ungated_forward(x, *args, **kwargs))

    def _shape_of(self, out: object) -> torch.Size:
        if not isinstance(out, Tensor):
            name, kind = type(self).__name__, type(out).__name__
            raise ValueError(
                f"target_layer_name={name}: the block returns a {kind}, not x + f(x); "
                "name another class, or give the class an attribute stochastic_depth and let its forward call it."
            )
        return out.shape


class _GatedContainer(_GatedBlock):
    """A block that is a list of layers, as class Residual(nn.Sequential); the gate is not one of them."""

    def _layers(self) -> list[nn.Module]:
        return [layer for layer in self._modules.values() if layer is not self.stochastic_depth]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._layers())

    def __len__(self) -> int:
        return len(self._layers())
