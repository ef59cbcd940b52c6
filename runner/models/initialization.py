"""How the weights of a model are drawn before training, where it is not the model's own way."""

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
    """Draw the weights of `model` anew, in place, by torch's global generator; return how many layers were drawn.

    With kernel positions K, fan-in = in / groups * K and fan-out = out * K, as torch counts them, a weight's
    distribution has mean 0 and the variance

        xavier_uniform, xavier_normal      2 / (fan-in + fan-out)       Glorot and Bengio 2010
        kaiming_fan_in, kaiming_fan_out    2 / fan-in, 2 / fan-out      He et al. 2015, arXiv 1502.01852; normal

    and "default" leaves the model as it is, drawing nothing. `layers`: "conv" takes the convolutions (`nn.Conv1d` to
    `nn.Conv3d` and their subclasses, a 1x1 classifier among them), "all" the linear layers too. The biases of these
    layers become 0. All else stays: norms, and with them `zero_init_residual`, gains, skip gains.

    A convolution whose weights are standardized draws its weight likewise; the scale of it has no effect there but on
    how far a step turns it. Fixup draws convolutions anew when it is applied, so what this did to them is lost then.

    ValueError for an unknown scheme or kind of layers.
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
