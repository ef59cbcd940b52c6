"""A convolution that pads as TensorFlow's SAME does."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from runner.layers.matrix_conv import MatrixConv2d, conv2d


class SamePadConv2d(MatrixConv2d):
    """`nn.Conv2d` whose `padding="same"` takes any stride, as TensorFlow's SAME does.

    An input of `size` gives ceil(size / stride) outputs and takes
    max((outputs - 1) * stride + dilation * (kernel_size - 1) + 1 - size, 0) rows (or columns) of padding, the smaller
    half before the input and the rest after it. With an odd kernel and stride 1 both halves are equal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        *args,
        **kwargs,
    ) -> None:
        is_same = padding == "same"  # which nn.Conv2d takes with stride 1 only
        super().__init__(in_channels, out_channels, kernel_size, stride, 0 if is_same else padding, *args, **kwargs)
        if is_same:
            self.padding = "same"

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding != "same":
            return super()._conv_forward(input, weight, bias)
        top, bottom = self._same_padding(input, 0)
        left, right = self._same_padding(input, 1)
        if self.padding_mode == "zeros" and top == bottom and left == right:
            return conv2d(input, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = F.pad(input, (left, right, top, bottom), mode=mode)
        return conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation, self.groups)

    def _same_padding(self, input: Tensor, axis: int) -> tuple[int, int]:
        """Padding before and after the rows (`axis` 0) or the columns (1) of the input."""
        size, stride = input.shape[axis - 2], self.stride[axis]
        outputs = (size + stride - 1) // stride
        total = max((outputs - 1) * stride + self.dilation[axis] * (self.kernel_size[axis] - 1) + 1 - size, 0)
        return total // 2, total - total // 2
