"""torchvision's residual blocks, which tell a normalization layer what follows it (see `runner.layers.norm_relu`).

Names of classes, modules and state-dict keys are torchvision's. Where nothing is fused, its own `forward` runs.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torchvision.models import resnet

from runner.layers.norm_relu import can_fuse


class _Scriptable(nn.Module):
    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script: torchvision's class with the same modules."""
        plain = copy.copy(self)
        plain.__class__ = next(base for base in type(self).__mro__ if base.__module__ == resnet.__name__)
        return plain


class BasicBlock(_Scriptable, resnet.BasicBlock):
    """torchvision's block of two 3x3 convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        if not can_fuse(x, self.relu, self.bn1, self.bn2):
            return super().forward(x)
        out = self.conv2(self.bn1.forward_relu(self.conv1(x)))
        return self.bn2.forward_relu(out, x if self.downsample is None else self.downsample(x))


class Bottleneck(_Scriptable, resnet.Bottleneck):
    """torchvision's block of a 1x1, a 3x3 and a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        if not can_fuse(x, self.relu, self.bn1, self.bn2, self.bn3):
            return super().forward(x)
        out = self.conv2(self.bn1.forward_relu(self.conv1(x)))
        out = self.conv3(self.bn2.forward_relu(out))
        return self.bn3.forward_relu(out, x if self.downsample is None else self.downsample(x))


class ResNet(_Scriptable, resnet.ResNet):
    """torchvision's ResNet, the first layers with it."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        if not can_fuse(x, self.relu, self.bn1):
            return super()._forward_impl(x)
        x = self.maxpool(self.bn1.forward_relu(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
