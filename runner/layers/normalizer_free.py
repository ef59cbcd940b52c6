"""What normalizer-free networks share (Brock et al. 2021, arXiv 2101.08692 and 2102.06171)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.limits import check
from runner.layers.stochastic_depth import StochasticDepth

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
}

# Brock et al. estimated these from samples: relu's exact value is sqrt(2 / (1 - 1 / pi)) = 1.712859.
GAMMAS = {
    "relu": 1.7139588594436646,
    "gelu": 1.7015043497085571,
    "silu": 1.7881293296813965,
    "tanh": 1.5939117670059204,
    "elu": 1.2716004848480225,
    "leaky_relu": 1.7059034109115601,
    "sigmoid": 4.803835391998291,
}


class ScaledActivation(nn.Module):
    """gamma * act(x), which has variance 1 for x ~ N(0, 1) (Brock et al. 2021, arXiv 2101.08692).

    `activation` is a key of `GAMMAS`; gelu is its tanh form. Raises ValueError for another name.
    """

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        check("model", activation=activation)
        self.activation = activation
        self.gamma = GAMMAS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x) * self.gamma

    def extra_repr(self) -> str:
        return f"{self.activation}, gamma={self.gamma:.6g}"


class NormalizerFreeBlock(nn.Module):
    """A pre-activation residual block without normalization: with a = gamma * act(x) / beta,

        y = shortcut + alpha * skipinit_gain * residual_branch(a).

    `beta` is the expected standard deviation of the input, `alpha` the growth of the deviation per block,
    `skipinit_gain` a scalar parameter that starts at 0. A subclass defines `residual_branch`, and in a transition block
    sets `shortcut` to a module that maps a to the shortcut; if it is None the shortcut is x.

    `stochastic_depth` is None at first; a `StochasticDepth` there gates the branch before the skip gain.
    """

    def __init__(self, beta: float = 1.0, alpha: float = 0.2, activation: str = "relu") -> None:
        super().__init__()
        self.beta = beta
        self.alpha = alpha
        self.activation = ScaledActivation(activation)
        self.stochastic_depth: StochasticDepth | None = None
        self.skipinit_gain = nn.Parameter(torch.zeros(()))
        self.shortcut: nn.Module | None = None

    def residual_branch(self, activated: Tensor) -> Tensor:
        """The branch before stochastic depth, skip gain and alpha; its input is activated and divided by beta."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(x) * (1 / self.beta)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        if self.stochastic_depth is None:
            residual = self.residual_branch(activated)
        else:
            residual = self.stochastic_depth(self.residual_branch, activated)
            if residual is None:
                return shortcut
        return residual * self.skipinit_gain * self.alpha + shortcut


def normalizer_free_stages(
    block: Callable[..., NormalizerFreeBlock],
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    in_channels: int,
    alpha: float,
) -> list[nn.Sequential]:
    """Stages of `depths` blocks and `widths` channels, all but the first of stride 2.

    The expected variance of a block's input, beta^2, is 1 after the stem, 1 + alpha^2 after a stage's first block
    (its shortcut resets the variance to 1), and grows by alpha^2 with each further block. A block is
    `block(in_channels, out_channels, stride=..., beta=..., alpha=...)`.
    """
    stages = []
    variance = 1.0
    for depth, width in zip(depths, widths, strict=True):
        stage = nn.Sequential()
        for index in range(depth):
            stride = 2 if index == 0 and stages else 1
            stage.append(block(in_channels, width, stride=stride, beta=variance**0.5, alpha=alpha))
            in_channels = width
            variance = (1.0 if index == 0 else variance) + alpha**2
        stages.append(stage)
    return stages


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507): sigmoid(W1 relu(W0 mean_HW(x) + b0) + b1).

    It gives a weight in (0, 1) for each channel, of shape (N, channels, 1, 1).

    W0 has max(1, int(channels * ratio)) rows. The linear layers are not standardized; their weights are drawn from
    a normal distribution of std 1 / sqrt(fan-in) truncated at two of these, and their biases start at 0.
    """

    def __init__(self, channels: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = max(1, int(channels * ratio))
        self.fc0 = nn.Linear(channels, hidden)
        self.fc1 = nn.Linear(hidden, channels)
        for linear in (self.fc0, self.fc1):
            std = linear.in_features**-0.5
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc0(x.mean((2, 3))))
        return torch.sigmoid(self.fc1(hidden))[:, :, None, None]


class NormalizerFreeNet(nn.Module):
    """`stem`, the four stages `layer1` to `layer4`, and the head.

    Head: `final_conv` if there is one, the activation, the mean over positions, dropout, and `fc` from `out_channels`
    to `num_classes` with weights from N(0, 0.01^2) and a bias of 0. Images (N, C, H, W) to logits (N, num_classes).
    """

    def __init__(
        self,
        stem: nn.Sequential,
        stages: Sequence[nn.Sequential],
        activation: ScaledActivation,
        *,
        out_channels: int,
        num_classes: int,
        dropout: float,
        final_conv: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.final_conv = final_conv
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(out_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        if self.final_conv is not None:
            x = self.final_conv(x)
        return self.fc(self.dropout(self.activation(x).mean((2, 3))))
