"""Schemes that initialize a model's weights otherwise than the model itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from runner.config.limits import check
from runner.layers.surgery import CONVOLUTIONS

SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_fan_in": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
    "kaiming_fan_out": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
}


def initialize(model: nn.Module, scheme: str, *, layers: str = "conv") -> int:
    """Initialize the weights of `model` in place, from torch's global generator; return how many layers were drawn.

    With kernel positions K, fan-in = in / groups * K and fan-out = out * K, as in torch, weights have mean 0 and the
    variance

        xavier_uniform, xavier_normal      2 / (fan-in + fan-out)       Glorot and Bengio 2010
        kaiming_fan_in, kaiming_fan_out    2 / fan-in, 2 / fan-out      He et al. 2015, arXiv 1502.01852; normal

    and "default" draws nothing. `layers`: "conv" takes the convolutions (`nn.Conv1d` to `nn.Conv3d` and their
    subclasses, including a 1x1 classifier), "all" the linear layers too. Their biases become 0. Norms, and so
    `zero_init_residual`, gains and skip gains do not change.

    The scale of a standardized convolution's weight only affects how far a step turns it. Fixup draws convolutions
    again when it is applied.

    Raises ValueError for an unknown scheme or kind of layers.
    """
    check("model", initialization=scheme, initialized_layers=layers)
    if scheme == "default":
        return 0
    kinds = (*CONVOLUTIONS, nn.Linear) if layers == "all" else CONVOLUTIONS
    drawn = [module for module in model.modules() if isinstance(module, kinds)]
    for layer in drawn:
        SCHEMES[scheme](layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return len(drawn)
