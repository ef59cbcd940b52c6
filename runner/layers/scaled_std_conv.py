"""The convolution of normalizer-free networks: scaled weight standardization."""

from __future__ import annotations

from torch import Tensor, nn

from runner.config.limits import check
from runner.layers.same_padding import SamePadConv2d
from runner.layers.standardize import scaled_standardize
from runner.layers.standardized_conv import StandardizedConv


class ScaledStdConv2d(StandardizedConv, SamePadConv2d):
    """A 2-d convolution with scaled weight standardization (Brock et al. 2021, arXiv 2101.08692).

    For each output filter, with N = in_channels / groups * kernel height * kernel width (the fan-in) and the biased
    variance over those N elements,

        W_hat = gain * (W - mean) / sqrt(max(var * N, eps)).

    Parameters: `weight`, drawn from N(0, 1 / N); `gain` of shape (out_channels,), 1 at first; `bias`, 0 at first and
    present unless `bias=False`. `eps` is a floor, so a filter's sum of squares is exactly gain^2 above it.

    Arguments are those of `nn.Conv2d`, beside `eps`, but padding="same" takes any stride (see `SamePadConv2d`). Under
    autocast the weight is standardized in its own fp32 and cast afterwards. Each forward computes W_hat; within
    `cached_standardized_weights` an evaluation computes it once.

    >>> import torch
    >>> from runner.methods import ScaledStdConv2d
    >>> conv = ScaledStdConv2d(64, 32, 3, padding="same")
    >>> conv(torch.randn(2, 64, 9, 9)).shape
    torch.Size([2, 32, 9, 9])
    >>> weight = conv.standardized_weight()
    >>> torch.allclose(weight.square().sum((1, 2, 3)), torch.ones(32))  # gain ** 2
    True
    """

    def __init__(self, *args, eps: float = 1e-4, **kwargs) -> None:
        check("weight_standardization", eps=eps)
        super().__init__(*args, **kwargs)
        self.eps = eps
        self.gain = nn.Parameter(self.weight.new_ones(self.out_channels))

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1 / fan-in) and set the gain to 1 and the bias to 0."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, "gain"):  # not yet there when nn.Conv2d's constructor calls this
            nn.init.ones_(self.gain)

    def standardized_weight(self) -> Tensor:
        """The weight the convolution uses, of the shape of `weight`."""
        return scaled_standardize(self.weight, self.gain, self.eps)
