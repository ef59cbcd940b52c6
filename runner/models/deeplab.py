"""DeepLabv3+ for segmentation (Chen et al. 2018, arXiv 1802.02611) on dilated ResNets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.config.limits import check
from runner.layers.norm_relu import norm_relu
from runner.layers.residual_blocks import BasicBlock, ResNet
from runner.models.resnet import resnet18, resnet50, resnet101

LOW_LEVEL_CHANNELS = 48
HEADS = {"composer": (3, 512), "paper": (1, 256)}  # the kernel that joins the pyramid's branches, the channels


class DilatedResNet(nn.Module):
    """A torchvision ResNet without its classifier, whose last stages are dilated instead of strided.

    `forward` gives the features of the first stage (stride 4) and of the last one (stride `output_stride`, 8 or 16).
    The names of parameters and buffers are torchvision's, so that its weights load but for the classifier's.
    """

    def __init__(self, plain: ResNet, output_stride: int) -> None:
        super().__init__()
        for name, child in plain.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)
        dilation = 1
        for stage, stride_after in (self.layer3, 16), (self.layer4, 32):
            if stride_after > output_stride:
                _dilate(stage, before=dilation, after=2 * dilation)
                dilation *= 2
        self.channels = [_channels(stage) for stage in (self.layer1, self.layer4)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(norm_relu(self.bn1, self.relu, self.conv1(x)))
        low = self.layer1(x)
        return low, self.layer4(self.layer3(self.layer2(low)))


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps the size of the image, batch norm and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, relu = self
        return norm_relu(norm, relu, conv(x))


class DeepLabHead(nn.Module):
    """Atrous spatial pyramid pooling (ASPP) and the decoder: two feature maps to logits at the size of the first.

    ASPP on the last features: the mean over the image through a 1x1 convolution, a 1x1 convolution, and three 3x3
    convolutions with the rates 6, 12, 18 at output stride 16 or 12, 24, 36 at 8, joined by a convolution of kernel size
    `joining_size`; all have `channels` channels. The paper joins them by a 1x1 convolution, Composer by a 3x3 one, with
    nine times the weights. Decoder: the first features through a 1x1 convolution to 48 channels are concatenated with
    the upsampled result; two 3x3 convolutions, dropout of whole channels and a 1x1 convolution, `classifier`, follow.

    `separable` makes the three atrous convolutions and the decoder's two depthwise ones followed by 1x1 convolutions,
    each with batch norm and ReLU: 15 convolutions in all, and 10 without. Training takes two images or more, since the
    mean over an image goes through batch norm.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        num_classes: int,
        *,
        output_stride: int,
        separable: bool,
        channels: int,
        joining_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        rates = [rate * 16 // output_stride for rate in (6, 12, 18)]
        self.image_pool = ConvNormReLU(high_channels, channels, 1)
        self.aspp = nn.ModuleList([ConvNormReLU(high_channels, channels, 1)])
        self.aspp.extend(_conv3x3(high_channels, channels, separable, rate) for rate in rates)
        self.bottleneck = ConvNormReLU(5 * channels, channels, joining_size)
        self.low_level = ConvNormReLU(low_channels, LOW_LEVEL_CHANNELS, 1)
        self.decoder = nn.Sequential(
            _conv3x3(channels + LOW_LEVEL_CHANNELS, channels, separable), _conv3x3(channels, channels, separable)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        pooled = self.image_pool(high.mean((2, 3), keepdim=True)).expand(-1, -1, *high.shape[2:])
        x = self.bottleneck(torch.cat([pooled, *(branch(high) for branch in self.aspp)], dim=1))
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False).to(x.dtype)  # on CUDA autocast widens
        x = self.decoder(torch.cat([x, self.low_level(low)], dim=1))
        return self.classifier(self.dropout(x))


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+: images (N, C, H, W) of any size to logits (N, num_classes, H, W).

    `backbone` is a `DilatedResNet` of the model that `build`, a function of torchvision, makes; `head` is a
    `DeepLabHead`.

    `output_stride`: 8 or 16, by how much the last features are smaller than the image. `separable`: depthwise separable
    convolutions in the head. `head`: "composer" joins the branches of the pyramid by a 3x3 convolution and has 512
    channels, as Composer's recipe for ADE20K; "paper" joins them by a 1x1 convolution and has 256. `head_channels`
    instead of these. `dropout`: rate of dropped channels before the classifier. `zero_init_residual` starts the last
    batch norm of each of the backbone's branches at weight 0. Raises ValueError for a setting outside its range.
    """

    def __init__(
        self,
        build: Callable[..., ResNet],
        num_classes: int = 150,
        output_stride: int = 8,
        separable: bool = True,
        head: str = "composer",
        head_channels: int | None = None,
        dropout: float = 0.1,
        zero_init_residual: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check("model", output_stride=output_stride, head=head, head_channels=head_channels, dropout=dropout)
        joining_size, channels = HEADS[head]
        self.backbone = DilatedResNet(build(zero_init_residual=zero_init_residual), output_stride)
        if in_channels != 3:
            self.backbone.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.head = DeepLabHead(
            *self.backbone.channels,
            num_classes,
            output_stride=output_stride,
            separable=separable,
            channels=channels if head_channels is None else head_channels,
            joining_size=joining_size,
            dropout=dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(*self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head.classifier


def deeplabv3plus_resnet18(
    num_classes: int = 150, output_stride: int = 16, head_channels: int = 256, **settings
) -> DeepLabV3Plus:
    """DeepLabv3+ with a ResNet-18, for small machines; see `DeepLabV3Plus` for the settings."""
    return DeepLabV3Plus(resnet18, num_classes, output_stride, head_channels=head_channels, **settings)


def deeplabv3plus_resnet50(num_classes: int = 150, **settings) -> DeepLabV3Plus:
    """DeepLabv3+ with a ResNet-50; see `DeepLabV3Plus` for the settings."""
    return DeepLabV3Plus(resnet50, num_classes, **settings)


def deeplabv3plus_resnet101(num_classes: int = 150, **settings) -> DeepLabV3Plus:
    """DeepLabv3+ with a ResNet-101; see `DeepLabV3Plus` for the settings."""
    return DeepLabV3Plus(resnet101, num_classes, **settings)


def _conv3x3(in_channels: int, out_channels: int, separable: bool, dilation: int = 1) -> nn.Module:
    if not separable:
        return ConvNormReLU(in_channels, out_channels, 3, dilation)
    return nn.Sequential(
        ConvNormReLU(in_channels, in_channels, 3, dilation, groups=in_channels),
        ConvNormReLU(in_channels, out_channels, 1),
    )


def _channels(stage: nn.Sequential) -> int:
    """The number of channels that a stage of residual blocks puts out."""
    last = stage[-1]
    return (last.conv2 if isinstance(last, BasicBlock) else last.conv3).out_channels


def _dilate(stage: nn.Sequential, *, before: int, after: int) -> None:
    """Take the stride out of a stage's first block and dilate its 3x3 convolutions, as torchvision does.

    Those of the first block keep the dilation `before`, where the stride stood; all others get `after`.
    """
    for index, block in enumerate(stage):
        for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                # a basic block's second convolution comes after the place of the stride
                dilation = (
                    before if index == 0 and not (isinstance(block, BasicBlock) and conv is block.conv2) else after
                )
                conv.dilation = conv.padding = (dilation, dilation)
