"""The residual networks of He et al. 2015 (arXiv 1512.03385, section 4.2) for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.limits import check
from runner.layers.norm_relu import norm_relu
from runner.layers.residual_blocks import BasicBlock


class ZeroPadShortcut(nn.Module):
    """Option A of the paper: every second position of x, with zeros in the channels that x does not have.

    Half of the zeros come before the channels of x and half after them.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        added = out_channels - in_channels
        self.before, self.after = added // 2, added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels={self.before}+x+{self.after}"


class CifarResNet(nn.Module):
    """A 3x3 convolution to 16 channels, then three stages `layer1` to `layer3` of basic blocks with 16, 32 and 64.

    6 n + 2 layers deep for n blocks a stage. The blocks are torchvision's `BasicBlock`; the first of the second and of
    the third stage halves the image. `shortcut`: "zero_pad" (option A: no parameters) or "projection" (option B: a 1x1
    convolution and a batch norm). Head: mean over positions, `fc`. Convolutions are drawn from N(0, 2 / fan-out);
    `zero_init_residual` starts the last batch norm of each branch at weight 0. ValueError for another shortcut.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int = 10,
        shortcut: str = "zero_pad",
        zero_init_residual: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check("model", shortcut=shortcut)
        channels = 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = nn.Sequential()
            for index in range(blocks_per_stage):
                stride = 2 if index == 0 and stage > 1 else 1
                blocks.append(BasicBlock(channels, width, stride, _shortcut(channels, width, stride, shortcut)))
                channels = width
            self.add_module(f"layer{stage}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = norm_relu(self.bn1, self.relu, self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: str) -> nn.Module | None:
    """What the shortcut of a block does; None where it is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    if kind == "zero_pad":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def resnet20(num_classes: int = 10, **settings) -> CifarResNet:
    """ResNet-20 for small images, 0.27 M parameters; see `CifarResNet`."""
    return CifarResNet(3, num_classes, **settings)


def resnet32(num_classes: int = 10, **settings) -> CifarResNet:
    """ResNet-32 for small images, 0.46 M parameters; see `CifarResNet`."""
    return CifarResNet(5, num_classes, **settings)


def resnet44(num_classes: int = 10, **settings) -> CifarResNet:
    """ResNet-44 for small images, 0.66 M parameters; see `CifarResNet`."""
    return CifarResNet(7, num_classes, **settings)


def resnet56(num_classes: int = 10, **settings) -> CifarResNet:
    """ResNet-56 for small images, 0.85 M parameters; see `CifarResNet`."""
    return CifarResNet(9, num_classes, **settings)


def resnet110(num_classes: int = 10, **settings) -> CifarResNet:
    """ResNet-110 for small images, 1.73 M parameters; see `CifarResNet`."""
    return CifarResNet(18, num_classes, **settings)
