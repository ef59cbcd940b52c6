"""Normalizer-free residual networks (Brock et al. 2021, arXiv 2101.08692)."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from runner.config.limits import check
from runner.layers.normalizer_free import (
    NormalizerFreeBlock,
    NormalizerFreeNet,
    ScaledActivation,
    SqueezeExcite,
    normalizer_free_stages,
)
from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.layers.stem import MaxPool2dSame, stem_named

STEM_WIDTH = 64
WIDTHS = (256, 512, 1024, 2048)


class NFResBlock(NormalizerFreeBlock):
    """A normalizer-free bottleneck block: with a = gamma * act(x) / beta,

        y = shortcut + alpha * skipinit_gain * conv2(act(conv1(act(conv0(a)))))

    The branch is 1x1 to out_channels / 4, 3x3 with the stride, 1x1; with `se` its output is multiplied by
    2 * SqueezeExcite. The shortcut is x, or in a transition block (where the stride or the number of channels changes)
    a strided 1x1 convolution of a, in the module `shortcut`. All convolutions are `ScaledStdConv2d` with TensorFlow's
    SAME padding. See `NormalizerFreeBlock` for the settings beta, alpha and activation, the skip gain and the
    place of stochastic depth.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, se: bool = False, **settings) -> None:
        super().__init__(**settings)
        width = out_channels // 4
        self.conv0 = ScaledStdConv2d(in_channels, width, 1, padding="same")
        self.conv1 = ScaledStdConv2d(width, width, 3, stride=stride, padding="same")
        self.conv2 = ScaledStdConv2d(width, out_channels, 1, padding="same")
        self.se = SqueezeExcite(out_channels) if se else None
        if stride > 1 or in_channels != out_channels:
            conv = ScaledStdConv2d(in_channels, out_channels, 1, stride=stride, padding="same")
            self.shortcut = nn.Sequential(OrderedDict(conv=conv))

    def residual_branch(self, activated: Tensor) -> Tensor:
        out = self.conv0(activated)
        out = self.conv1(self.activation(out))
        out = self.conv2(self.activation(out))
        return out if self.se is None else 2 * self.se(out) * out


class NFResNet(NormalizerFreeNet):
    """A pre-activation ResNet of `NFResBlock`s without normalization layers, after DeepMind's code.

    Stem: a `ScaledStdConv2d` to 64 channels, then a max-pool if the stem has one; no activation. The stages have 256,
    512, 1024 and 2048 channels. See `normalizer_free_stages` for beta, and `NormalizerFreeNet` for the head.

    `depths`: the numbers of blocks in the four stages. `stem`: a name in `runner.layers.stem.STEMS`. `alpha`: growth of
    the standard deviation per block. `activation`: a key of `runner.layers.normalizer_free.GAMMAS`. `se`:
    squeeze-and-excitation in each block. `dropout`: rate before the classifier. `width` multiplies all numbers of
    channels but `in_channels`, that of the images. Raises ValueError for a setting outside its range.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        stem: str = "imagenet",
        alpha: float = 0.2,
        activation: str = "relu",
        se: bool = False,
        dropout: float = 0.0,
        width: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        check("model", alpha=alpha, activation=activation, width=width)
        chosen = stem_named(stem)
        stem_width, *widths = (int(channels * width) for channels in (STEM_WIDTH, *WIDTHS))
        layers = nn.Sequential()
        layers.conv = ScaledStdConv2d(in_channels, stem_width, chosen.kernel_size, stride=chosen.stride, padding="same")
        if chosen.pool:
            layers.pool = MaxPool2dSame(kernel_size=3, stride=2)
        block = partial(NFResBlock, activation=activation, se=se)
        super().__init__(
            layers,
            normalizer_free_stages(block, depths, widths, in_channels=stem_width, alpha=alpha),
            ScaledActivation(activation),
            out_channels=widths[-1],
            num_classes=num_classes,
            dropout=dropout,
        )


def nf_resnet26(num_classes: int = 1000, **settings) -> NFResNet:
    """NF-ResNet-26, with depths 1, 2, 4, 1; see `NFResNet` for the settings."""
    return NFResNet((1, 2, 4, 1), num_classes, **settings)


def nf_resnet50(num_classes: int = 1000, **settings) -> NFResNet:
    """NF-ResNet-50, with depths 3, 4, 6, 3; see `NFResNet` for the settings."""
    return NFResNet((3, 4, 6, 3), num_classes, **settings)


def nf_resnet101(num_classes: int = 1000, **settings) -> NFResNet:
    """NF-ResNet-101, with depths 3, 4, 23, 3; see `NFResNet` for the settings."""
    return NFResNet((3, 4, 23, 3), num_classes, **settings)


def nf_resnet152(num_classes: int = 1000, **settings) -> NFResNet:
    """NF-ResNet-152, with depths 3, 8, 36, 3; see `NFResNet` for the settings."""
    return NFResNet((3, 8, 36, 3), num_classes, **settings)


def nf_resnet200(num_classes: int = 1000, **settings) -> NFResNet:
    """NF-ResNet-200, with depths 3, 24, 36, 3; see `NFResNet` for the settings."""
    return NFResNet((3, 24, 36, 3), num_classes, **settings)
