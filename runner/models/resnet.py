"""torchvision's residual networks (He et al. 2015, arXiv 1512.03385) with a choice of stem."""

from __future__ import annotations

from torch import nn

from runner.config.limits import check
from runner.layers.residual_blocks import BasicBlock, Bottleneck, ResNet
from runner.layers.stem import stem_named


class ScaledResNet(ResNet):
    """torchvision's ResNet with `width` times its numbers of channels."""

    def __init__(self, width: float, block: type[BasicBlock] | type[Bottleneck], *args, **kwargs) -> None:
        self.width = width
        super().__init__(block, *args, **kwargs)
        self.fc = nn.Linear(int(512 * width) * block.expansion, self.fc.out_features)

    def _make_layer(self, block: type[nn.Module], planes: int, *args, **kwargs) -> nn.Sequential:
        if planes == 64:  # the first stage: the stem before it was made with torchvision's number of channels
            self.inplanes = int(64 * self.width)
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, int(planes * self.width), *args, **kwargs)


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: list[int],
    num_classes: int,
    stem: str = "imagenet",
    zero_init_residual: bool = False,
    width: float = 1.0,
    in_channels: int = 3,
) -> ResNet:
    check("model", width=width)
    chosen = stem_named(stem)
    if width == 1:
        model = ResNet(block, depths, num_classes=num_classes, zero_init_residual=zero_init_residual)
    else:
        model = ScaledResNet(width, block, depths, num_classes=num_classes, zero_init_residual=zero_init_residual)
    if stem != "imagenet" or in_channels != 3:
        size, channels = chosen.kernel_size, model.conv1.out_channels
        model.conv1 = nn.Conv2d(in_channels, channels, size, stride=chosen.stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if not chosen.pool:
        model.maxpool = nn.Identity()
    return model


def resnet18(num_classes: int = 1000, **settings) -> ResNet:
    """ResNet-18: torchvision's model and state-dict keys.

    `stem`: a name in `runner.layers.stem.STEMS`; "imagenet", the default, is torchvision's. `zero_init_residual` starts
    the last batch norm of each branch at weight 0. `width` multiplies all numbers of channels but that of the images,
    `in_channels`. Convolutions are drawn from N(0, 2 / fan-out), whatever the stem. Raises ValueError for a setting
    outside its range.
    """
    return _resnet(BasicBlock, [2, 2, 2, 2], num_classes, **settings)


def resnet34(num_classes: int = 1000, **settings) -> ResNet:
    """ResNet-34; see `resnet18`."""
    return _resnet(BasicBlock, [3, 4, 6, 3], num_classes, **settings)


def resnet50(num_classes: int = 1000, **settings) -> ResNet:
    """ResNet-50, with the stride in the 3x3 convolution as torchvision has it; see `resnet18`."""
    return _resnet(Bottleneck, [3, 4, 6, 3], num_classes, **settings)


def resnet101(num_classes: int = 1000, **settings) -> ResNet:
    """ResNet-101; see `resnet50`."""
    return _resnet(Bottleneck, [3, 4, 23, 3], num_classes, **settings)


def resnet152(num_classes: int = 1000, **settings) -> ResNet:
    """ResNet-152; see `resnet50`."""
    return _resnet(Bottleneck, [3, 8, 36, 3], num_classes, **settings)
