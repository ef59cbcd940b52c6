"""NFNet-F0 to -F7 (Brock et al. 2021, arXiv 2102.06171)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
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

WIDTHS = (256, 512, 1536, 1536)
DEPTHS = (1, 2, 6, 3)  # of F0; those of Fn are n + 1 times these
GROUP_WIDTH = 128


@dataclass(frozen=True)
class Variant:
    """What the paper fixes for a size: dropout before the classifier, image sizes in pixels, RandAugment's strength."""

    dropout: float
    train_size: int
    test_size: int
    rand_augment: int


VARIANTS = (
    Variant(0.2, 192, 256, 5),
    Variant(0.3, 224, 320, 10),
    Variant(0.4, 256, 352, 10),
    Variant(0.4, 320, 416, 15),
    Variant(0.5, 384, 512, 15),
    Variant(0.5, 416, 544, 15),
    Variant(0.5, 448, 576, 15),
    Variant(0.5, 480, 608, 15),
)


class NFBlock(NormalizerFreeBlock):
    """A normalizer-free bottleneck block with two grouped 3x3 convolutions: with a = gamma * act(x) / beta,

        y = shortcut + alpha * skipinit_gain * 2 * SE(r) * r,
        r = conv2(act(conv1b(act(conv1(act(conv0(a)))))))

    conv0 is 1x1 to out_channels / 2, conv1 (with the stride) and conv1b are 3x3 in groups of `group_width` channels,
    conv2 is 1x1. The shortcut is x, or in a transition block (where the stride or the number of channels changes) a 1x1
    convolution of a, after a 2x2 average pool if there is a stride, in the module `shortcut`. All convolutions are
    `ScaledStdConv2d` with TensorFlow's SAME padding. See `NormalizerFreeBlock` for the settings beta and alpha, the
    skip gain and the place of stochastic depth.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        activation: str = "gelu",
        group_width: int = GROUP_WIDTH,
        **settings,
    ) -> None:
        super().__init__(activation=activation, **settings)
        groups = max(1, out_channels // 2 // group_width)
        width = groups * group_width
        self.conv0 = ScaledStdConv2d(in_channels, width, 1, padding="same")
        self.conv1 = ScaledStdConv2d(width, width, 3, stride=stride, padding="same", groups=groups)
        self.conv1b = ScaledStdConv2d(width, width, 3, padding="same", groups=groups)
        self.conv2 = ScaledStdConv2d(width, out_channels, 1, padding="same")
        self.se = SqueezeExcite(out_channels, ratio=0.5)
        if stride > 1 or in_channels != out_channels:
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if stride > 1:  # an odd edge is averaged over what is there, as TensorFlow's SAME does
                layers["pool"] = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            layers["conv"] = ScaledStdConv2d(in_channels, out_channels, 1, padding="same")
            self.shortcut = nn.Sequential(layers)

    def residual_branch(self, activated: Tensor) -> Tensor:
        out = self.conv0(activated)
        out = self.conv1(self.activation(out))
        out = self.conv1b(self.activation(out))
        out = self.conv2(self.activation(out))
        return 2 * self.se(out) * out


class NFNet(NormalizerFreeNet):
    """NFNet-F`size`, after DeepMind's code; `variant` holds the paper's image sizes, dropout and augmentation.

    Stem: 3x3 convolutions to 16 (stride 2), 32, 64 and 128 channels (stride 2), with activations between them. The
    blocks are `NFBlock`s, and the final convolution has 3072 channels. See `normalizer_free_stages` for beta, and
    `NormalizerFreeNet` for the head.

    `alpha`: growth of the standard deviation per block. `activation`: a key of `runner.layers.normalizer_free.GAMMAS`.
    `dropout`: rate before the classifier; None takes the paper's. `group_width`: channels of a group in the 3x3
    convolutions, of as many groups as fit into half the block's channels. Raises ValueError for a setting outside its
    range.
    """

    def __init__(
        self,
        size: int,
        num_classes: int = 1000,
        alpha: float = 0.2,
        activation: str = "gelu",
        dropout: float | None = None,
        in_channels: int = 3,
        group_width: int = GROUP_WIDTH,
    ) -> None:
        variant = VARIANTS[size]
        dropout = variant.dropout if dropout is None else dropout
        check("model", alpha=alpha, activation=activation, dropout=dropout, group_width=group_width)
        scaled_activation = ScaledActivation(activation)
        stem = nn.Sequential()
        channels = in_channels
        for index, (width, stride) in enumerate(((16, 2), (32, 1), (64, 1), (128, 2))):
            if index > 0:
                stem.add_module(f"activation{index - 1}", scaled_activation)
            stem.add_module(f"conv{index}", ScaledStdConv2d(channels, width, 3, stride=stride, padding="same"))
            channels = width
        depths = [depth * (size + 1) for depth in DEPTHS]
        block = partial(NFBlock, activation=activation, group_width=group_width)
        super().__init__(
            stem,
            normalizer_free_stages(block, depths, WIDTHS, in_channels=channels, alpha=alpha),
            scaled_activation,
            final_conv=ScaledStdConv2d(WIDTHS[-1], 2 * WIDTHS[-1], 1, padding="same"),
            out_channels=2 * WIDTHS[-1],
            num_classes=num_classes,
            dropout=dropout,
        )
        self.variant = variant


def nfnet_f0(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F0, 71.5 M parameters at 1000 classes; see `NFNet` for the settings."""
    return NFNet(0, num_classes, **settings)


def nfnet_f1(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F1; see `NFNet` for the settings."""
    return NFNet(1, num_classes, **settings)


def nfnet_f2(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F2; see `NFNet` for the settings."""
    return NFNet(2, num_classes, **settings)


def nfnet_f3(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F3; see `NFNet` for the settings."""
    return NFNet(3, num_classes, **settings)


def nfnet_f4(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F4; see `NFNet` for the settings."""
    return NFNet(4, num_classes, **settings)


def nfnet_f5(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F5; see `NFNet` for the settings."""
    return NFNet(5, num_classes, **settings)


def nfnet_f6(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F6; see `NFNet` for the settings."""
    return NFNet(6, num_classes, **settings)


def nfnet_f7(num_classes: int = 1000, **settings) -> NFNet:
    """NFNet-F7; see `NFNet` for the settings."""
    return NFNet(7, num_classes, **settings)
